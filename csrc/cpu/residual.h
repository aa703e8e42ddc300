// What follows a matrix product. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_RESIDUAL
#define PVT_BODY_RESIDUAL

#include "cpu/gemm.h"

// x[:, 0:columns] += sums + bias   x: rows x_stride apart   sums: rows sums_stride apart
template <class scalar_t>
inline void add_residual(const float* sums, int64_t sums_stride, const float* bias, int64_t rows,
                         int64_t columns, scalar_t* x, int64_t x_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t count = columns - c < kLanes ? columns - c : kLanes;
      scalar_t* out = x + i * x_stride + c;
      float old[kLanes] = {}, sum[kLanes];
      to_float(out, count, old);
      store(sum, load(old) + (load(sums + i * sums_stride + c) + load_first(bias + c, count)));
      from_float(sum, count, out);
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
