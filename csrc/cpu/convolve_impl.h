// The pointer-level body of convolve(), compiled once per CPU level (foreach_level.h).
//
// Row (y, x) of the left-hand side is the patch under the kernel, gathered where it is, position
// after position; the right-hand side is the packed weight.

#include "cpu/gemm.h"
#include "cpu/layer_norm.h"

// Rows of patches are long.
template <class scalar_t>
constexpr RowLimits kPatchLimits = kOnTiles<scalar_t> ? RowLimits{64, 32} : RowLimits{48, 1};

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

// dst <- `count` pixels side by side, normalised by `queue` if there is one
template <class Element>
inline void copy_pixels(const float* pixel, int64_t column_stride, int64_t count, int64_t C_in,
                        NormQueue<Element>* queue, Element* dst) {
  if (queue == nullptr && column_stride == C_in) {
    return from_float(pixel, count * C_in, dst);
  }
  for (int64_t t = 0; t < count; ++t, pixel += column_stride, dst += C_in) {
    if (queue == nullptr) {
      from_float(pixel, C_in, dst);
    } else {
      queue->push(pixel, dst);
    }
  }
}

// Where the pixel under the first position of a kernel is, as an offset that may lead outside, and
// how far the next ones are.
struct Corner {
  const float* base;
  int64_t offset, row_stride, column_stride;
};

// patch <- positions [first, first + count) of a kernel whose first is at row y, column w of the
// image; channels innermost, zeros outside
template <class Element>
inline void gather_patch(const PatchArgs& args, const Corner& corner, int64_t y, int64_t w,
                         int64_t first, int64_t count, NormQueue<Element>* queue, Element* patch) {
  const int64_t K = args.kernel_size, C = args.C_in;
  int64_t row = first / K, column = first % K;
  for (int64_t in_row; count > 0; count -= in_row, patch += in_row * C, ++row, column = 0) {
    in_row = count < K - column ? count : K - column;
    // Of these pixels, [before, inside) are in the image.
    int64_t before = w + column < 0 ? -(w + column) : 0, inside = args.W - (w + column);
    before = y + row < 0 || y + row >= args.H || before > in_row ? in_row : before;
    inside = inside < before ? before : inside > in_row ? in_row : inside;
    // No call for nothing: there are 16 for a token of 4 x 4 pixels.
    if (before > 0) {
      __builtin_memset(patch, 0, before * C * sizeof(Element));
    }
    if (before < inside) {
      const float* pixel = corner.base + (corner.offset + row * corner.row_stride +
                                          (column + before) * corner.column_stride);
      copy_pixels(pixel, corner.column_stride, inside - before, C, queue, patch + before * C);
    }
    if (inside < in_row) {
      __builtin_memset(patch + inside * C, 0, (in_row - inside) * C * sizeof(Element));
    }
  }
}

// Floats that hold what is under the kernels of `rows` output tokens, if those lie side by side.
inline int64_t strip_size(const PatchArgs& args, int64_t rows) {
  const int64_t tokens = rows < args.out_W ? rows : args.out_W;
  const int64_t width = (tokens - 1) * args.stride + args.kernel_size;
  return args.channel_stride == 1 ? 0 : args.kernel_size * width * args.C_in;
}

// dst <- `count` pixels of three channels side by side, from channels one after the other
inline void interleave_three(const float* a, const float* b, const float* c, int64_t count,
                             float* dst) {
  int64_t t = 0;
#if !defined(__clang__)  // whose shuffles want constants
  // Lane j of vector v is channel (v kLanes + j) % 3 of pixel (v kLanes + j) / 3.
  IntVec from_a_or_b[3], or_c[3];
  for (int at = 0; at < 3 * kLanes; ++at) {
    const int v = at / kLanes, j = at % kLanes, pixel = at / 3, channel = at % 3;
    from_a_or_b[v][j] = channel == 1 ? kLanes + pixel : pixel;
    or_c[v][j] = channel == 2 ? kLanes + pixel : j;
  }
  for (; t + kLanes <= count; t += kLanes) {
    for (int v = 0; v < 3; ++v) {
      const Vec ab = __builtin_shuffle(load(a + t), load(b + t), from_a_or_b[v]);
      store(dst + 3 * t + v * kLanes, __builtin_shuffle(ab, load(c + t), or_c[v]));
    }
  }
#endif
  for (; t < count; ++t) {
    dst[3 * t] = a[t], dst[3 * t + 1] = b[t], dst[3 * t + 2] = c[t];
  }
}

// strip <- kernel_size rows of `width` pixels from (y, w) on, the channels of a pixel side by side;
// what is outside the image stays as it is. An image comes channel by channel, and each of its
// pixels is in several patches.
inline void interleave(const PatchArgs& args, const float* image, int64_t y, int64_t w,
                       int64_t width, float* strip) {
  const int64_t begin = w < 0 ? -w : 0, end = args.W - w < width ? args.W - w : width;
  for (int64_t row = y; row < y + args.kernel_size; ++row, strip += width * args.C_in) {
    if (row < 0 || row >= args.H || begin >= end) {
      continue;
    }
    const float* line = image + row * args.row_stride + (w + begin) * args.column_stride;
    float* dst = strip + begin * args.C_in;
    if (args.C_in == 3 && args.column_stride == 1) {
      interleave_three(line, line + args.channel_stride, line + 2 * args.channel_stride,
                       end - begin, dst);
      continue;
    }
    for (int64_t c = 0; c < args.C_in; ++c) {
      for (int64_t t = 0; t < end - begin; ++t) {
        dst[t * args.C_in + c] = line[t * args.column_stride + c * args.channel_stride];
      }
    }
  }
}

// units <- positions [first, first + count) of the patches of output rows [row, row + rows), after
// the LayerNorm of their tokens if there is one.   units: [rows, left_units(count * C_in)]
//   strip: scratch, see strip_size
template <class scalar_t>
inline void gather_patches(const PatchArgs& args, const float* x, int64_t row, int64_t rows,
                           int64_t first, int64_t count, float* units, float* strip) {
  const int64_t row_size = right_units<scalar_t>(count * args.C_in) * Operand<scalar_t>::kPerUnit;
  using Element = typename Operand<scalar_t>::Element;
  Element* patch = reinterpret_cast<Element*>(units);
  NormQueue<Element> queue(args.C_in, args.input_norm);
  NormQueue<Element>* norm = args.input_norm.weight == nullptr ? nullptr : &queue;
  const int64_t per_image = args.out_H * args.out_W;
  for (int64_t end = row + rows, in_line; row < end; row += in_line) {
    // Output tokens side by side
    const int64_t token = row % args.out_W;
    in_line = end - row < args.out_W - token ? end - row : args.out_W - token;
    const float* image = x + row / per_image * args.batch_stride;
    const int64_t y = row % per_image / args.out_W * args.stride - args.padding;
    int64_t w = token * args.stride - args.padding;
    Corner corner{image, y * args.row_stride + w * args.column_stride, args.row_stride,
                  args.column_stride};
    if (args.channel_stride != 1) {
      const int64_t width = (in_line - 1) * args.stride + args.kernel_size;
      interleave(args, image, y, w, width, strip);
      corner = {strip, 0, width * args.C_in, args.C_in};
    }
    for (int64_t i = 0; i < in_line; ++i, patch += row_size, w += args.stride) {
      gather_patch(args, corner, y, w, first, count, norm, patch);
      corner.offset += args.stride * corner.column_stride;
      if (count * args.C_in < row_size) {
        patch[row_size - 1] = Element{0.f};  // the pair of the last one
      }
    }
  }
}

// units <- whole patches of output rows [row, row + rows), quantised; see gather_patches
//   units: [rows, row_units(patch)]   patch: scratch, the inputs of one   strip: see strip_size
inline void gather_quantised(const PatchArgs& args, const float* x, int64_t row, int64_t rows,
                             float* units, float* patch, float* strip) {
  const int64_t positions = args.kernel_size * args.kernel_size, size = positions * args.C_in;
  for (int64_t i = 0; i < rows; ++i) {
    gather_patches<float>(args, x, row + i, 1, 0, positions, patch, strip);
    Operand<int8_t>::to_left(patch, size, units + i * row_units<int8_t>(size));
  }
}

// As what patches are gathered: what is split afterwards, sum by sum, as floats.
template <class scalar_t>
using GatherType = std::conditional_t<kSplits<scalar_t>, float, scalar_t>;

// Floats that hold the parts of the inputs that are summed at once.
template <class scalar_t>
inline int64_t parts_size(const PatchArgs& args, int64_t rows) {
  return kSplits<scalar_t> ? rows * left_units<scalar_t>(positions_per_sum(args) * args.C_in) : 0;
}

// Floats of working memory that convolve_rows() needs.
template <class scalar_t>
inline int64_t convolve_scratch_size(const PatchArgs& args, int64_t rows) {
  if constexpr (Operand<scalar_t>::kHeader > 0) {
    const int64_t size = args.kernel_size * args.kernel_size * args.C_in;
    return rows * row_units<scalar_t>(size) + size + strip_size(args, 1);
  } else {
    const int64_t gathered =
        rows * left_units<GatherType<scalar_t>>(positions_per_gather(args) * args.C_in);
    return gathered + strip_size(args, rows) + parts_size<scalar_t>(args, rows);
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
    float* patch = units + rows * stride;
    gather_quantised(args, x, row, rows, units, patch, patch + size);
    gemm<scalar_t>(rows, columns, right_units<scalar_t>(size), units, stride, weight, panel_stride,
                   sums, sums_stride, /*accumulate=*/false);
    return;
  }
  using Gathered = GatherType<scalar_t>;
  const int64_t gather = positions_per_gather(args), at_once = positions_per_sum(args);
  float* strip = units + rows * left_units<Gathered>(gather * args.C_in);
  float* parts = strip + strip_size(args, rows);
  for (int64_t first = 0; first < positions; first += gather) {
    const int64_t end = positions - first < gather ? positions : first + gather;
    const int64_t stride = left_units<Gathered>((end - first) * args.C_in);
    gather_patches<Gathered>(args, x, row, rows, first, end - first, units, strip);
    for (int64_t t = first; t < end; t += at_once) {
      const int64_t inputs = (end - t < at_once ? end - t : at_once) * args.C_in;
      const float* left = units + left_units<Gathered>((t - first) * args.C_in);
      int64_t left_stride = stride;
      if constexpr (kSplits<scalar_t>) {
        left_stride = left_units<scalar_t>(inputs);
        for (int64_t i = 0; i < rows; ++i) {
          Operand<scalar_t>::to_left(left + i * stride, inputs, parts + i * left_stride);
        }
        left = parts;
      }
      gemm<scalar_t>(rows, columns, right_units<scalar_t>(inputs), left, left_stride,
                     weight + t * args.C_in / per_unit * kPanel, panel_stride, sums, sums_stride,
                     /*accumulate=*/t > 0);
    }
  }
}
