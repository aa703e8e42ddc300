// What follows a matrix product. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_RESIDUAL
#define PVT_BODY_RESIDUAL

#include "cpu/gemm.h"

// x[:, 0:columns] += sums + bias   x: rows x_stride apart   sums: rows sums_stride apart
template <class scalar_t>
inline void add_residual(const float* sums, int64_t sums_stride, const float* bias, int64_t rows,
                         int64_t columns, scalar_t* x, int64_t x_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* sum = sums + i * sums_stride;
    scalar_t* out = x + i * x_stride;
    int64_t c = 0;
    for (; c + kLanes <= columns; c += kLanes) {
      store_floats(load_floats(out + c) + (load(sum + c) + load(bias + c)), out + c);
    }
    for (; c < columns; ++c) {
      float old, fresh;
      to_float(out + c, 1, &old);
      fresh = old + (sum[c] + bias[c]);
      from_float(&fresh, 1, out + c);
    }
  }
}

// sums[:, 0:columns] += bias
inline void add_bias(float* sums, int64_t sums_stride, const float* bias, int64_t rows,
                     int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      float* row = sums + i * sums_stride + c;
      store(row, load(row) + load_first(bias + c, columns - c));
    }
  }
}

#endif  // PVT_BODY_RESIDUAL
