// Linear layers and what follows them. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_LINEAR
#define PVT_BODY_LINEAR

#include "cpu/gemm.h"

// x[:, 0:columns] += sums + bias   x: rows x_stride apart   sums: rows sums_stride apart
inline void add_residual(const float* sums, int64_t sums_stride, const float* bias, int64_t rows,
                         int64_t columns, float* x, int64_t x_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* sum = sums + i * sums_stride;
    float* out = x + i * x_stride;
    int64_t c = 0;
    for (; c + kLanes <= columns; c += kLanes) {
      store(out + c, load(out + c) + (load(sum + c) + load(bias + c)));
    }
    for (; c < columns; ++c) {
      out[c] += sum[c] + bias[c];
    }
  }
}

// sums[:, 0:columns] += bias
inline void add_bias(float* sums, int64_t sums_stride, const float* bias, int64_t rows,
                     int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      float* row = sums + i * sums_stride + c;
      store(row, load(row) + load_floats(bias + c, columns - c));
    }
  }
}

// out[:, 0:columns] <- tokens weight^T, columns [begin, begin + columns) of a layer, without bias
//   tokens: [rows, depth] units   out: rows out_stride apart, at the range's first column
//   begin: a multiple of kPanel, or, of at most kTileColumns columns, of kTileColumns
template <class scalar_t>
inline void multiply_columns(const LinearArgs& linear, const float* tokens, int64_t rows,
                             int64_t depth, int64_t begin, int64_t columns, float* out,
                             int64_t out_stride) {
  gemm<scalar_t>(rows, columns, depth, tokens, depth,
                 linear.weight + panel_offset(begin, depth * kPanel), depth * kPanel, out,
                 out_stride, /*accumulate=*/false);
}

// The same with the bias.
template <class scalar_t>
inline void linear_columns(const LinearArgs& linear, const float* tokens, int64_t rows,
                           int64_t depth, int64_t begin, int64_t columns, float* out,
                           int64_t out_stride) {
  multiply_columns<scalar_t>(linear, tokens, rows, depth, begin, columns, out, out_stride);
  add_bias(out, out_stride, linear.bias + begin, rows, columns);
}

// out[:, begin:begin + columns] <- those columns of a layer that has `size`
//   tokens: [rows, depth] units   out: [rows, size]   begin: a multiple of kTileColumns
//   sums: scratch, [rows, kTileColumns]   columns: at most kTileColumns
template <class scalar_t>
inline void store_linear_columns(const LinearArgs& linear, const float* tokens, int64_t rows,
                                 int64_t depth, int64_t begin, int64_t columns, int64_t size,
                                 float* out, float* sums) {
  linear_columns<scalar_t>(linear, tokens, rows, depth, begin, columns, sums, kTileColumns);
  for (int64_t i = 0; i < rows; ++i) {
    __builtin_memcpy(out + i * size + begin, sums + i * kTileColumns, columns * sizeof(float));
  }
}

// x[:, begin:begin + columns] += those columns of the layer   x: [rows, C]
//   sums: scratch, [rows, kTileColumns]   columns: at most kTileColumns
template <class scalar_t>
inline void residual_columns(const LinearArgs& linear, const float* tokens, int64_t rows,
                             int64_t depth, int64_t begin, int64_t columns, float* x, int64_t C,
                             float* sums) {
  multiply_columns<scalar_t>(linear, tokens, rows, depth, begin, columns, sums, kTileColumns);
  add_residual(sums, kTileColumns, linear.bias + begin, rows, columns, x + begin, C);
}

#endif  // PVT_BODY_LINEAR
