// Linear layers and what follows them. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_LINEAR
#define PVT_BODY_LINEAR

#include "cpu/gemm.h"

// The scales of kLanes columns from `column` on, of 8-bit weights.
inline Vec column_scales(const LinearArgs& linear, int64_t column) {
  const float* panel = linear.weight + panel_offset(column, linear.panel_stride);
  return load(panel + linear.panel_stride - kPanel);
}

// What a layer gives for the sums of `count` columns from `column` on: with its scale and its bias.
template <class scalar_t>
inline Vec completed(Vec sum, const LinearArgs& linear, int64_t column, int64_t count) {
  const Vec bias = load_floats(linear.bias + column, count);
  if constexpr (Operand<scalar_t>::kHeader == 0) {
    return sum + bias;
  } else {
    return fmadd(sum, column_scales(linear, column), bias);
  }
}

// sums[:, 0:columns] <- with the scale of the layer's columns [begin, begin + columns), no bias
template <class scalar_t>
inline void scale_sums(const LinearArgs& linear, int64_t begin, int64_t columns, int64_t rows,
                       float* sums, int64_t sums_stride) {
  if constexpr (Operand<scalar_t>::kHeader > 0) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < columns; c += kLanes) {
        float* sum = sums + i * sums_stride + c;
        store(sum, load(sum) * column_scales(linear, begin + c));
      }
    }
  }
}

// sums[:, 0:columns] <- what the layer gives for its columns [begin, begin + columns)
//   sums: rows sums_stride apart   begin: a multiple of kLanes
template <class scalar_t>
inline void complete(const LinearArgs& linear, int64_t begin, int64_t columns, int64_t rows,
                     float* sums, int64_t sums_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      float* sum = sums + i * sums_stride + c;
      store(sum, completed<scalar_t>(load(sum), linear, begin + c, columns - c));
    }
  }
}

// x[:, 0:columns] += what the layer gives for the sums of its columns [begin, begin + columns)
//   x: rows x_stride apart   sums: rows sums_stride apart   begin: a multiple of kLanes
template <class scalar_t>
inline void add_residual(const LinearArgs& linear, int64_t begin, int64_t columns, int64_t rows,
                         const float* sums, int64_t sums_stride, float* x, int64_t x_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t count = columns - c;
      const Vec sum = load(sums + i * sums_stride + c);
      float* out = x + i * x_stride + c;
      store_floats(load_floats(out, count) + completed<scalar_t>(sum, linear, begin + c, count),
                   count, out);
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
//   tokens: [rows, row_units(C)]   out: rows out_stride apart, at the range's first column
//   begin: a multiple of kPanel, or, of at most kTileColumns columns, of kTileColumns
template <class scalar_t>
inline void multiply_columns(const LinearArgs& linear, const float* tokens, int64_t rows, int64_t C,
                             int64_t begin, int64_t columns, float* out, int64_t out_stride,
                             const NextPanels& next = {}, SplitBlocks* kept = nullptr) {
  gemm<scalar_t>(rows, columns, right_units<scalar_t>(C), tokens, row_units<scalar_t>(C),
                 linear.weight + panel_offset(begin, linear.panel_stride), linear.panel_stride, out,
                 out_stride, /*accumulate=*/false, next, kept);
}

// What is read first for columns [begin, ...) of a layer of C inputs and `size` outputs, from input
// `first` on; nothing if there are none.
template <class scalar_t>
inline NextPanels first_panels(const LinearArgs& linear, int64_t C, int64_t size, int64_t begin,
                               int64_t first) {
  const int64_t columns = size - begin, inputs = C - first;
  if (columns <= 0 || inputs <= 0) {
    return {};
  }
  return {linear.weight + panel_offset(begin, linear.panel_stride) +
              first / Operand<scalar_t>::kPerUnit * kPanel,
          linear.panel_stride, columns < kTileColumns ? columns : kTileColumns,
          right_units<scalar_t>(inputs < kBlockInputs<scalar_t> ? inputs : kBlockInputs<scalar_t>)};
}

// The same, complete.
template <class scalar_t>
inline void linear_columns(const LinearArgs& linear, const float* tokens, int64_t rows, int64_t C,
                           int64_t begin, int64_t columns, float* out, int64_t out_stride) {
  multiply_columns<scalar_t>(linear, tokens, rows, C, begin, columns, out, out_stride);
  complete<scalar_t>(linear, begin, columns, rows, out, out_stride);
}

// out[:, begin:begin + columns] <- those columns of a layer that has `size`
//   tokens: [rows, row_units(C)]   out: [rows, size]   begin: a multiple of kPanel
//   sums: scratch, [rows, round_up(columns, kPanel)]
template <class scalar_t>
inline void store_linear_columns(const LinearArgs& linear, const float* tokens, int64_t rows,
                                 int64_t C, int64_t begin, int64_t columns, int64_t size,
                                 float* out, float* sums) {
  const int64_t stride = round_up(columns, kPanel);
  linear_columns<scalar_t>(linear, tokens, rows, C, begin, columns, sums, stride);
  for (int64_t i = 0; i < rows; ++i) {
    __builtin_memcpy(out + i * size + begin, sums + i * stride, columns * sizeof(float));
  }
}

// x[:, begin:begin + columns] += those columns of a layer that has `size`
//   tokens: [rows, row_units(C)]   x: [rows, size]   begin: a multiple of kPanel
//   sums: scratch, [rows, round_up(columns, kPanel)]
//   next_begin: where the same thread will go on, as a rule; `size` or more: nowhere
template <class scalar_t>
inline void residual_columns(const LinearArgs& linear, const float* tokens, int64_t rows, int64_t C,
                             int64_t begin, int64_t columns, int64_t size, int64_t next_begin,
                             float* x, float* sums) {
  const int64_t stride = round_up(columns, kPanel);
  multiply_columns<scalar_t>(linear, tokens, rows, C, begin, columns, sums, stride,
                             first_panels<scalar_t>(linear, C, size, next_begin, 0));
  add_residual<scalar_t>(linear, begin, columns, rows, sums, stride, x + begin, size);
}

#endif  // PVT_BODY_LINEAR
