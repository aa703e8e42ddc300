// The pointer-level body of convolve(), compiled once per CPU level (foreach_level.h).
//
// Row (y, x) of the left-hand side is the patch under the kernel, gathered where it is, position
// after position; the right-hand side is the packed weight.

#include "cpu/gemm.h"
#include "cpu/layer_norm.h"

// Positions of a patch that are gathered and summed at once: as many as hold kChunk inputs, and an
// even number, so that pairs of bfloat16 never reach into the next ones. Of few channels, longer
// sums would have up to twice the error of PyTorch.
constexpr int64_t kChunk = 64;

inline int64_t positions_per_chunk(const PatchArgs& args) {
  const int64_t positions = kChunk / args.C_in / 2 * 2;
  return positions < 2 ? 2 : positions;
}

// dst <- the inputs of output row `row` at positions [first, first + count), [count, C_in]; zeros
// outside the input.
template <class scalar_t>
inline void gather_patch(const PatchArgs& args, const scalar_t* x, int64_t row, int64_t first,
                         int64_t count, float* dst) {
  const int64_t per_image = args.out_H * args.out_W;
  const scalar_t* image = x + row / per_image * args.batch_stride;
  const int64_t left = row % args.out_W * args.stride - args.padding;
  int64_t y = row % per_image / args.out_W * args.stride - args.padding + first / args.kernel_size;
  int64_t w = left + first % args.kernel_size;
  for (int64_t t = 0; t < count; ++t, dst += args.C_in) {
    if (y < 0 || y >= args.H || w < 0 || w >= args.W) {
      __builtin_memset(dst, 0, args.C_in * sizeof(float));
    } else {
      const scalar_t* pixel = image + y * args.row_stride + w * args.column_stride;
      if (args.channel_stride == 1) {
        to_float(pixel, args.C_in, dst);
      } else {
        for (int64_t c = 0; c < args.C_in; ++c) {
          to_float(pixel + c * args.channel_stride, 1, dst + c);
        }
      }
      if (args.input_norm.weight != nullptr) {
        layer_norm_row(dst, args.C_in, args.input_norm);
      }
    }
    if (++w == left + args.kernel_size) {  // the next row of the kernel
      w = left;
      ++y;
    }
  }
}

// Floats of working memory that convolve_rows() needs.
template <class scalar_t>
inline int64_t convolve_scratch_size(const PatchArgs& args, int64_t rows) {
  const int64_t chunk = positions_per_chunk(args) * args.C_in;
  return chunk + rows * num_units<scalar_t>(chunk);
}

// sums[:, 0:columns] <- columns [begin, begin + columns) of the convolution, without bias, for
// output rows [row, row + rows).   sums: rows sums_stride apart   begin: a multiple of kPanel
template <class scalar_t>
inline void convolve_rows(const PatchArgs& args, const scalar_t* x, int64_t row, int64_t rows,
                          int64_t begin, int64_t columns, float* sums, int64_t sums_stride,
                          float* scratch) {
  using Op = Operand<scalar_t>;
  const int64_t positions = args.kernel_size * args.kernel_size;
  const int64_t at_once = positions_per_chunk(args);
  const int64_t panel_stride = num_units<scalar_t>(positions * args.C_in) * kPanel;
  float* patch = scratch;                      // [at_once, C_in]
  float* units = patch + at_once * args.C_in;  // [rows, depth]
  for (int64_t first = 0; first < positions; first += at_once) {
    const int64_t count = positions - first < at_once ? positions - first : at_once;
    const int64_t depth = num_units<scalar_t>(count * args.C_in);
    for (int64_t i = 0; i < rows; ++i) {
      gather_patch(args, x, row + i, first, count, patch);
      Op::floats_to_units(patch, count * args.C_in, units + i * depth);
    }
    const float* weight = args.conv.weight + panel_offset(begin, panel_stride) +
                          first * args.C_in / Op::kPerUnit * kPanel;
    gemm<scalar_t>(rows, columns, depth, units, depth, weight, panel_stride, sums, sums_stride,
                   /*accumulate=*/first > 0);
  }
}
