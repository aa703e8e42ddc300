// A register-tiled matrix product on packed panels: the inner loop of every CPU kernel. Part of a
// kernel body (see foreach_level.h).
//
// Both operands are stored in 32-bit units along the sum: one float, or at the bf16 level a pair of
// bfloat16 whose products one instruction adds to a float. A row of the left-hand matrix is a row
// of units. A panel is kPanel columns of the right-hand matrix, row of units after row of units,
// [K][kPanel], so that the inner loop reads it in order. Columns beyond the matrix are zero.

#include "cpu/convert.h"
#include "cpu/vec.h"

constexpr int kPanel = kPanelVecs * kLanes;
constexpr int kMaxRows = 6;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// How a kernel multiplies inputs of type scalar_t. Everything but bfloat16 is widened to float.
template <class scalar_t>
struct Operand {
  static constexpr int kPerUnit = 1;

  static void to_units(const scalar_t* src, int64_t count, float* units) {
    to_float(src, count, units);
  }
  static Vec multiply_add(Vec left, Vec right, Vec sum) { return fmadd(left, right, sum); }
};

#if PVT_LEVEL == PVT_LEVEL_AVX512_BF16
template <>
struct Operand<BFloat16> {
  static constexpr int kPerUnit = 2;

  // An odd count is completed by a zero.
  static void to_units(const BFloat16* src, int64_t count, float* units) {
    if (count % 2 != 0) {
      units[count / 2] = 0.f;
    }
    __builtin_memcpy(units, src, count * sizeof(BFloat16));
  }
  // units[t] <- (first[t], second[t])
  static void pair_rows(const BFloat16* first, const BFloat16* second, int64_t count,
                        float* units) {
    int64_t t = 0;
    for (; t + 4 <= count; t += 4) {
      const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(first + t));
      const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(second + t));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(units + t), _mm_unpacklo_epi16(low, high));
    }
    for (; t < count; ++t) {
      const BFloat16 pair[2] = {first[t], second[t]};
      __builtin_memcpy(units + t, pair, sizeof pair);
    }
  }
  static Vec multiply_add(Vec left, Vec right, Vec sum) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }
};
#endif

// Units that hold `count` inputs.
template <class scalar_t>
inline int64_t num_units(int64_t count) {
  return (count + Operand<scalar_t>::kPerUnit - 1) / Operand<scalar_t>::kPerUnit;
}

// c[i][0:kPanel] = (accumulate ? c[i] : 0) + sum_k a[i][k] * b[k][0:kPanel]   for i < kRows, k < K
// units
//   a: rows a_stride units apart   b: panel [K][kPanel]   c: rows c_stride apart
// The sum over k starts at zero and is added to c at its end: long sums built tile by tile keep the
// accuracy of a blocked sum. Every element is summed in the order of k whatever kRows is, so the
// result does not depend on how rows are grouped into tiles.
template <class scalar_t, int kRows>
inline void gemm_tile_rows(int64_t K, const float* a, int64_t a_stride, const float* b, float* c,
                           int64_t c_stride, bool accumulate) {
  // Unrolled, so that sum[][] is registers and nothing else.
  Vec sum[kRows][kPanelVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kPanelVecs; ++j) {
      sum[i][j] = Vec{};
    }
  }
  for (int64_t k = 0; k < K; ++k) {
    Vec column[kPanelVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kPanelVecs; ++j) {
      column[j] = load(b + k * kPanel + j * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec left = broadcast(a[i * a_stride + k]);
#pragma GCC unroll 8
      for (int j = 0; j < kPanelVecs; ++j) {
        sum[i][j] = Operand<scalar_t>::multiply_add(left, column[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kPanelVecs; ++j) {
      float* out = c + i * c_stride + j * kLanes;
      store(out, accumulate ? load(out) + sum[i][j] : sum[i][j]);
    }
  }
}

// The same for a number of rows known at run time, 1 to kMaxRows.
template <class scalar_t>
inline void gemm_tile(int64_t rows, int64_t K, const float* a, int64_t a_stride, const float* b,
                      float* c, int64_t c_stride, bool accumulate) {
  switch (rows) {
    case 1:
      return gemm_tile_rows<scalar_t, 1>(K, a, a_stride, b, c, c_stride, accumulate);
    case 2:
      return gemm_tile_rows<scalar_t, 2>(K, a, a_stride, b, c, c_stride, accumulate);
    case 3:
      return gemm_tile_rows<scalar_t, 3>(K, a, a_stride, b, c, c_stride, accumulate);
    case 4:
      return gemm_tile_rows<scalar_t, 4>(K, a, a_stride, b, c, c_stride, accumulate);
    case 5:
      return gemm_tile_rows<scalar_t, 5>(K, a, a_stride, b, c, c_stride, accumulate);
    default:
      return gemm_tile_rows<scalar_t, 6>(K, a, a_stride, b, c, c_stride, accumulate);
  }
}

// Transposes four rows of units into a panel: those at position k go to dst(k)[0:4].
//   rows: [4][count], row_stride apart   dst: the place in the panel that position k has
template <class Destination>
inline void transpose_into_panel(const float* rows, int64_t row_stride, int64_t count,
                                 const Destination& dst) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    Quad r[4];
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(&r[i], rows + i * row_stride + k, sizeof r[i]);
    }
    const Quad low01 = shuffle<0, 4, 1, 5>(r[0], r[1]), high01 = shuffle<2, 6, 3, 7>(r[0], r[1]);
    const Quad low23 = shuffle<0, 4, 1, 5>(r[2], r[3]), high23 = shuffle<2, 6, 3, 7>(r[2], r[3]);
    const Quad columns[4] = {shuffle<0, 1, 4, 5>(low01, low23), shuffle<2, 3, 6, 7>(low01, low23),
                             shuffle<0, 1, 4, 5>(high01, high23),
                             shuffle<2, 3, 6, 7>(high01, high23)};
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(dst(k + i), &columns[i], sizeof columns[i]);
    }
  }
  for (; k < count; ++k) {
    for (int i = 0; i < 4; ++i) {
      dst(k)[i] = rows[i * row_stride + k];
    }
  }
}
