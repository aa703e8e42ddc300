// The pointer-level body of gemm(), compiled once per CPU level (foreach_level.h).

#include "cpu/gemm.h"

// c[i][0:kVecs] = (accumulate ? c[i] : 0) + sum_k a[i][k] * b[k]   for i < kRows, k < K units
//   a: left-hand rows a_stride units apart, each with its header   b: first column of the tile in
//   its panel; panels are panel_stride units apart   c: rows c_stride apart
// The sum over k starts at zero and is added to c at its end: long sums built block by block keep
// the accuracy of a blocked sum. Every element is summed in the order of k whatever kRows and kVecs
// are, so the result does not depend on how rows and columns are grouped into tiles.
template <class scalar_t, int kRows, int kVecs>
inline void gemm_tile(int64_t K, const float* a, int64_t a_stride, const float* b,
                      int64_t panel_stride, float* c, int64_t c_stride, bool accumulate) {
  using Op = Operand<scalar_t>;
  // Unrolled, so that sum[][] is registers and nothing else.
  typename Op::Sum sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      sum[i][j] = Op::first_sum(a + i * a_stride);
    }
  }
  const float* header = a;
  a += Op::kHeader;
  for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 4
    for (int step = 0; step < Op::kSteps; ++step) {
      Vec column[kVecs];
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) {
        column[j] =
            Op::right_part(load(b + panel_offset(j * kLanes, panel_stride) + k * kPanel), step);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Vec left = broadcast(a[i * a_stride + k * Op::kSteps + step]);
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) {
          sum[i][j] = Op::multiply_add(left, column[j], sum[i][j]);
          if constexpr (Op::kSteps > 1) {
            keep_in_register(sum[i][j]);
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      float* out = c + i * c_stride + j * kLanes;
      const Vec total = Op::total(sum[i][j], header + i * a_stride);
      store(out, accumulate ? load(out) + total : total);
    }
  }
}

// The same for a number of rows and of vectors known at run time.
template <class scalar_t, int kRows>
inline void gemm_tile_vecs(int64_t vecs, int64_t K, const float* a, int64_t a_stride,
                           const float* b, int64_t panel_stride, float* c, int64_t c_stride,
                           bool accumulate) {
  static_assert(kTileVecs == 2 || kTileVecs == 4);
  switch (vecs) {
    case 1:
      return gemm_tile<scalar_t, kRows, 1>(K, a, a_stride, b, panel_stride, c, c_stride,
                                           accumulate);
    case 2:
      return gemm_tile<scalar_t, kRows, 2>(K, a, a_stride, b, panel_stride, c, c_stride,
                                           accumulate);
#if PVT_LEVEL >= PVT_LEVEL_AVX512
    case 3:
      return gemm_tile<scalar_t, kRows, 3>(K, a, a_stride, b, panel_stride, c, c_stride,
                                           accumulate);
    default:
      return gemm_tile<scalar_t, kRows, 4>(K, a, a_stride, b, panel_stride, c, c_stride,
                                           accumulate);
#endif
  }
}

template <class scalar_t>
inline void gemm_tile(int64_t rows, int64_t vecs, int64_t K, const float* a, int64_t a_stride,
                      const float* b, int64_t panel_stride, float* c, int64_t c_stride,
                      bool accumulate) {
  const auto tile = rows == 1   ? gemm_tile_vecs<scalar_t, 1>
                    : rows == 2 ? gemm_tile_vecs<scalar_t, 2>
                    : rows == 3 ? gemm_tile_vecs<scalar_t, 3>
                    : rows == 4 ? gemm_tile_vecs<scalar_t, 4>
                    : rows == 5 ? gemm_tile_vecs<scalar_t, 5>
                                : gemm_tile_vecs<scalar_t, 6>;
  tile(vecs, K, a, a_stride, b, panel_stride, c, c_stride, accumulate);
}

template <class scalar_t>
void gemm(int64_t rows, int64_t columns, int64_t K, const float* a, int64_t a_stride,
          const float* b, int64_t panel_stride, float* c, int64_t c_stride, bool accumulate) {
  constexpr int64_t kBlock = kSumBlock / Operand<scalar_t>::kPerUnit;
  constexpr int64_t kBlockUnits = kBlock * Operand<scalar_t>::kSteps + Operand<scalar_t>::kHeader;
  for (int64_t j = 0; j < columns; j += kTileColumns) {
    const int64_t left = (columns - j + kLanes - 1) / kLanes;
    const int64_t vecs = left < kTileVecs ? left : kTileVecs;
    const float* column = b + panel_offset(j, panel_stride);
    for (int64_t k = 0; k < K; k += kBlock) {
      const int64_t depth = K - k < kBlock ? K - k : kBlock;
      // Tiles of almost equal height: 50 rows are 5 x 6 + 4 x 5, not 8 x 6 + 2.
      int64_t tiles = (rows + kTileRows - 1) / kTileRows;
      for (int64_t i = 0, height; i < rows; i += height, --tiles) {
        height = (rows - i + tiles - 1) / tiles;
        const float* block = a + i * a_stride + k / kBlock * kBlockUnits;
        gemm_tile<scalar_t>(height, vecs, depth, block, a_stride, column + k * kPanel, panel_stride,
                            c + i * c_stride + j, c_stride, accumulate || k > 0);
      }
    }
  }
}

template void gemm<float>(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t,
                          float*, int64_t, bool);
template void gemm<BFloat16>(int64_t, int64_t, int64_t, const float*, int64_t, const float*,
                             int64_t, float*, int64_t, bool);
template void gemm<int8_t>(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t,
                           float*, int64_t, bool);
template void gemm<Half>(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t,
                         float*, int64_t, bool);
