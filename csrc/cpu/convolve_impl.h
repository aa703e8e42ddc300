// The pointer-level body of convolve(), compiled once per CPU level (foreach_level.h).
//
// Row (y, x) of the left-hand side is the patch under the kernel, gathered where it is, position
// after position; the right-hand side is the packed weight.

#include "cpu/gemm.h"
#include "cpu/layer_norm.h"

// Positions that hold about `inputs` inputs: an even number, so that pairs of bfloat16 never reach
// into the next ones.
inline int64_t positions_of(int64_t inputs, const PatchArgs& args) {
  const int64_t positions = inputs / args.C_in / 2 * 2;
  return positions < 2 ? 2 : positions;
}

// Gathered at once: tokens that lie side by side, so that memory is read in long runs.
inline int64_t positions_per_gather(const PatchArgs& args) {
  return positions_of(512, args);
}

// Summed at once. Of few channels, longer sums would have up to twice the error of PyTorch.
inline int64_t positions_per_sum(const PatchArgs& args) {
  return positions_of(args.C_in < 64 ? 64 : kSumBlock, args);
}

// Calls visit(pixel, place) for the inputs of output row `row` at positions [first, first + count):
// where the channels of one are, null outside the input, and where they go, [count, C_in].
template <class Element, class Visit>
inline void foreach_pixel(const PatchArgs& args, const float* x, int64_t row, int64_t first,
                          int64_t count, Element* dst, const Visit& visit) {
  const int64_t per_image = args.out_H * args.out_W;
  const float* image = x + row / per_image * args.batch_stride;
  const int64_t left = row % args.out_W * args.stride - args.padding;
  int64_t y = row % per_image / args.out_W * args.stride - args.padding + first / args.kernel_size;
  int64_t w = left + first % args.kernel_size;
  for (int64_t t = 0; t < count; ++t, dst += args.C_in) {
    const bool outside = y < 0 || y >= args.H || w < 0 || w >= args.W;
    visit(outside ? nullptr : image + y * args.row_stride + w * args.column_stride, dst);
    if (++w == left + args.kernel_size) {  // the next row of the kernel
      w = left;
      ++y;
    }
  }
}

// dst <- the channels of a pixel
template <class Element>
inline void copy_pixel(const PatchArgs& args, const float* pixel, Element* dst) {
  if (pixel == nullptr) {
    __builtin_memset(dst, 0, args.C_in * sizeof(Element));
  } else if (args.channel_stride == 1) {
    from_float(pixel, args.C_in, dst);
  } else {
    for (int64_t c = 0; c < args.C_in; ++c) {
      from_float(pixel + c * args.channel_stride, 1, dst + c);
    }
  }
}

// LayerNorm of tokens that come one at a time: they wait until there are kNormRows of them.
template <class Element>
class NormQueue {
 public:
  NormQueue(int64_t C, const NormArgs& norm) : C_(C), norm_(norm) {}
  ~NormQueue() {
    for (int i = waiting_; i < kNormRows && waiting_ > 0; ++i) {
      from_[i] = from_[0], to_[i] = to_[0];
    }
    if (waiting_ > 0) {
      layer_norm_four(from_, C_, norm_, to_);
    }
  }
  void push(const float* token, Element* dst) {
    from_[waiting_] = token, to_[waiting_] = dst;
    if (++waiting_ == kNormRows) {
      layer_norm_four(from_, C_, norm_, to_);
      waiting_ = 0;
    }
  }

 private:
  int64_t C_;
  NormArgs norm_;
  int waiting_ = 0;
  const float* from_[kNormRows];
  Element* to_[kNormRows];
};

// units <- positions [first, first + count) of the patches of output rows [row, row + rows), after
// the LayerNorm of their tokens if there is one.   units: [rows, left_units(count * C_in)]
template <class scalar_t>
inline void gather_patches(const PatchArgs& args, const float* x, int64_t row, int64_t rows,
                           int64_t first, int64_t count, float* units) {
  const int64_t stride = right_units<scalar_t>(count * args.C_in) * Operand<scalar_t>::kPerUnit;
  using Element = typename Operand<scalar_t>::Element;
  Element* patch = reinterpret_cast<Element*>(units);
  NormQueue<Element> queue(args.C_in, args.input_norm);
  for (int64_t i = 0; i < rows; ++i, patch += stride) {
    foreach_pixel(args, x, row + i, first, count, patch, [&](const float* pixel, Element* dst) {
      if (args.input_norm.weight == nullptr || pixel == nullptr) {
        copy_pixel(args, pixel, dst);
      } else {
        queue.push(pixel, dst);
      }
    });
    if (count * args.C_in < stride) {
      patch[stride - 1] = Element{0.f};  // the pair of the last one
    }
  }
}

// units <- whole patches of output rows [row, row + rows), quantised; see gather_patches
//   units: [rows, row_units(patch)]   patch: scratch, the inputs of one
inline void gather_quantised(const PatchArgs& args, const float* x, int64_t row, int64_t rows,
                             float* units, float* patch) {
  const int64_t positions = args.kernel_size * args.kernel_size, size = positions * args.C_in;
  for (int64_t i = 0; i < rows; ++i) {
    gather_patches<float>(args, x, row + i, 1, 0, positions, patch);
    Operand<int8_t>::to_left(patch, size, units + i * row_units<int8_t>(size));
  }
}

// Floats of working memory that convolve_rows() needs.
template <class scalar_t>
inline int64_t convolve_scratch_size(const PatchArgs& args, int64_t rows) {
  if constexpr (Operand<scalar_t>::kHeader > 0) {
    const int64_t size = args.kernel_size * args.kernel_size * args.C_in;
    return rows * row_units<scalar_t>(size) + size;
  } else {
    return rows * left_units<scalar_t>(positions_per_gather(args) * args.C_in);
  }
}

// sums[:, 0:columns] <- columns [begin, begin + columns) of the convolution, without bias, for
// output rows [row, row + rows).   sums: rows sums_stride apart   begin: a multiple of kPanel
//   units: scratch, see convolve_scratch_size
template <class scalar_t>
inline void convolve_rows(const PatchArgs& args, const float* x, int64_t row, int64_t rows,
                          int64_t begin, int64_t columns, float* sums, int64_t sums_stride,
                          float* units) {
  constexpr int64_t per_unit = Operand<scalar_t>::kPerUnit;
  const int64_t positions = args.kernel_size * args.kernel_size;
  const int64_t panel_stride = args.conv.panel_stride;
  const float* weight = args.conv.weight + panel_offset(begin, panel_stride);
  if constexpr (Operand<scalar_t>::kHeader > 0) {
    const int64_t size = positions * args.C_in, stride = row_units<scalar_t>(size);
    gather_quantised(args, x, row, rows, units, units + rows * stride);
    gemm<scalar_t>(rows, columns, right_units<scalar_t>(size), units, stride, weight, panel_stride,
                   sums, sums_stride, /*accumulate=*/false);
    return;
  }
  const int64_t gather = positions_per_gather(args), at_once = positions_per_sum(args);
  for (int64_t first = 0; first < positions; first += gather) {
    const int64_t end = positions - first < gather ? positions : first + gather;
    const int64_t stride = left_units<scalar_t>((end - first) * args.C_in);
    gather_patches<scalar_t>(args, x, row, rows, first, end - first, units);
    for (int64_t t = first; t < end; t += at_once) {
      const int64_t count = end - t < at_once ? end - t : at_once;
      gemm<scalar_t>(rows, columns, right_units<scalar_t>(count * args.C_in),
                     units + left_units<scalar_t>((t - first) * args.C_in), stride,
                     weight + t * args.C_in / per_unit * kPanel, panel_stride, sums, sums_stride,
                     /*accumulate=*/t > 0);
    }
  }
}
