// The pointer-level body of pool_kv, compiled once per CPU level (foreach_level.h).

#include "cpu/gelu.h"
#include "cpu/layer_norm.h"
#include "cpu/linear.h"

// Floats of working memory that pool_cell() needs.
inline int64_t pool_scratch_size(const PoolArgs& args) {
  const int64_t widest = args.W / args.pool_size + 2;  // a window may share a column at either end
  return (widest < args.W ? widest : args.W) * args.C + args.C;
}

// out <- the mean of LayerNorm(x) over the window of cell (y, w), as adaptive_avg_pool2d divides it
//   x: [H, W, C]   out: [C]
inline void pool_cell(const PoolArgs& args, const float* x, int64_t y, int64_t w, float* out,
                      float* scratch) {
  const int64_t C = args.C, H = args.H, W = args.W, P = args.pool_size;
  const int64_t top = y * H / P, bottom = ((y + 1) * H + P - 1) / P;
  const int64_t left = w * W / P, right = ((w + 1) * W + P - 1) / P;
  float* row_sum = scratch;     // [C], added up row by row: short sums have small errors
  float* tokens = row_sum + C;  // [right - left, C]
  __builtin_memset(out, 0, C * sizeof(float));
  for (int64_t row = top; row < bottom; ++row) {
    layer_norm_rows(x + (row * W + left) * C, C, right - left, C, args.input_norm, tokens, C);
    __builtin_memset(row_sum, 0, C * sizeof(float));
    for (int64_t i = 0; i < right - left; ++i) {
      for (int64_t c = 0; c < C; ++c) {
        row_sum[c] += tokens[i * C + c];
      }
    }
    for (int64_t c = 0; c < C; ++c) {
      out[c] += row_sum[c];
    }
  }
  const float size = static_cast<float>((bottom - top) * (right - left));
  for (int64_t c = 0; c < C; ++c) {
    out[c] /= size;
  }
}

// units <- gelu(LayerNorm(sums + bias))
//   sums: [rows, round_up(C, kPanel)]   units: [rows, row_units(C)]
template <class scalar_t>
inline void finish_pooling(const PatchArgs& args, float* sums, int64_t rows, float* units) {
  const int64_t C = args.C_out, stride = round_up(C, kPanel), depth = row_units<scalar_t>(C);
  complete<scalar_t>(args.conv, 0, C, rows, sums, stride);
  layer_norm_rows(sums, stride, rows, C, args.norm, sums, stride);
  for (int64_t i = 0; i < rows; ++i) {
    float* row = sums + i * stride;
    for (int64_t c = 0; c < C; c += kLanes) {
      store(row + c, gelu(load(row + c)));
    }
    Operand<scalar_t>::to_left(row, C, units + i * depth);
  }
}
