// Sums over many rows. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_COLUMN_SUM
#define PVT_BODY_COLUMN_SUM

#include "cpu/vec.h"

// The sum of x[0:kLanes] over `rows` rows, x_stride apart: in blocks, so that rounding errors grow
// with the number of blocks and of a block's rows, not with their product.
inline Vec column_sum(const float* x, int64_t x_stride, int64_t rows) {
  constexpr int64_t kBlock = 32;
  Vec total{};
  for (int64_t begin = 0; begin < rows; begin += kBlock) {
    const int64_t end = rows - begin < kBlock ? rows : begin + kBlock;
    Vec sum{};
    for (int64_t i = begin; i < end; ++i) {
      sum += load(x + i * x_stride);
    }
    total += sum;
  }
  return total;
}

#endif  // PVT_BODY_COLUMN_SUM
