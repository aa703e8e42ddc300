// The depthwise convolution of 3 x 3 tokens, zeros around the grid, on tiles of kTileColumns
// channels. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_DEPTHWISE
#define PVT_BODY_DEPTHWISE

#include "cpu/convert.h"
#include "cpu/gemm.h"

// One grid row: emit(sum, w, c, count) for every token w and vector of `count` channels from c,
//   sum = bias[c] + sum_{i,j} rows[i][w + j - 1][c] * taps[i * 3 + j][c]
//   rows: the row above, this one and the one below, each [W, kTileColumns]
//   taps: [9], tap_stride apart
template <class Emit>
inline void convolve_row(const float* const* rows, int64_t W, int64_t columns, const float* taps,
                         int64_t tap_stride, const float* bias, const Emit& emit) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t count = columns - c;
    Vec tap[9];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) {
      tap[t] = load_floats(taps + t * tap_stride + c, count);
    }
    const Vec start = load_floats(bias + c, count);
    Vec before = start, here = start;  // sums of the tokens left of column w, and of its own
    for (int64_t w = 0; w < W; ++w) {
      Vec after = start;
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        const Vec value = load(rows[i] + w * kTileColumns + c);
        before = fmadd(value, tap[i * 3 + 2], before);
        here = fmadd(value, tap[i * 3 + 1], here);
        after = fmadd(value, tap[i * 3], after);
      }
      if (w > 0) {
        emit(before, w - 1, c, count);
      }
      before = here;
      here = after;
    }
    emit(before, W - 1, c, count);
  }
}

// What one grid row adds to the gradient of the taps:
//   d_taps[i * 3 + j][c] += sum_w rows[i][w + j - 1][c] * grad[w][c]
//   rows: see convolve_row   grad: [W, kTileColumns]   d_taps: [9, kTileColumns]
inline void convolve_row_backward(const float* const* rows, const float* grad, int64_t W,
                                  int64_t columns, float* d_taps) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    Vec sum[9] = {};
    Vec before{},
        here = load(grad + c);  // gradients of the tokens left of column w, and of its own
    for (int64_t w = 0; w < W; ++w) {
      const Vec after = w + 1 < W ? load(grad + (w + 1) * kTileColumns + c) : Vec{};
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        const Vec value = load(rows[i] + w * kTileColumns + c);
        sum[i * 3] = fmadd(value, after, sum[i * 3]);
        sum[i * 3 + 1] = fmadd(value, here, sum[i * 3 + 1]);
        sum[i * 3 + 2] = fmadd(value, before, sum[i * 3 + 2]);
      }
      before = here;
      here = after;
    }
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) {
      float* out = d_taps + t * kTileColumns + c;
      store(out, load(out) + sum[t]);
    }
  }
}

// The grid row y of a tile [H, W, kTileColumns] and those beside it; `outside` is a row of zeros.
struct GridRows {
  GridRows(const float* tile, int64_t y, int64_t H, int64_t W, const float* outside)
      : rows{y > 0 ? tile + (y - 1) * W * kTileColumns : outside, tile + y * W * kTileColumns,
             y + 1 < H ? tile + (y + 1) * W * kTileColumns : outside} {}
  const float* rows[3];
};

#endif  // PVT_BODY_DEPTHWISE
