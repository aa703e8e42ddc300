// A register-tiled matrix product on packed panels: the inner loop of every CPU kernel. Part of a
// kernel body (see foreach_level.h).
//
// A panel is kPanel columns of the right-hand matrix stored row after row, [K][kPanel], so that the
// inner loop reads it in order. Columns beyond the matrix are zero.

#include "cpu/vec.h"

constexpr int kPanel = kPanelVecs * kLanes;
constexpr int kMaxRows = 6;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// c[i][0:kPanel] = (accumulate ? c[i] : 0) + sum_k a[i][k] * b[k][0:kPanel]   for i < kRows
//   a: rows a_stride apart   b: panel [K][kPanel]   c: rows c_stride apart
// The sum over k starts at zero and is added to c at its end: long sums built tile by tile keep the
// accuracy of a blocked sum. Every element is summed in the order of k whatever kRows is, so the
// result does not depend on how rows are grouped into tiles.
template <int kRows>
inline void gemm_tile_rows(int64_t K, const float* a, int64_t a_stride, const float* b, float* c,
                           int64_t c_stride, bool accumulate) {
  Vec sum[kRows][kPanelVecs] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vec column[kPanelVecs];
    for (int j = 0; j < kPanelVecs; ++j) {
      column[j] = load(b + k * kPanel + j * kLanes);
    }
    for (int i = 0; i < kRows; ++i) {
      const Vec left = broadcast(a[i * a_stride + k]);
      for (int j = 0; j < kPanelVecs; ++j) {
        sum[i][j] = fmadd(left, column[j], sum[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kPanelVecs; ++j) {
      float* out = c + i * c_stride + j * kLanes;
      store(out, accumulate ? load(out) + sum[i][j] : sum[i][j]);
    }
  }
}

// The same for a number of rows known at run time, 1 to kMaxRows.
inline void gemm_tile(int64_t rows, int64_t K, const float* a, int64_t a_stride, const float* b,
                      float* c, int64_t c_stride, bool accumulate) {
  switch (rows) {
    case 1:
      return gemm_tile_rows<1>(K, a, a_stride, b, c, c_stride, accumulate);
    case 2:
      return gemm_tile_rows<2>(K, a, a_stride, b, c, c_stride, accumulate);
    case 3:
      return gemm_tile_rows<3>(K, a, a_stride, b, c, c_stride, accumulate);
    case 4:
      return gemm_tile_rows<4>(K, a, a_stride, b, c, c_stride, accumulate);
    case 5:
      return gemm_tile_rows<5>(K, a, a_stride, b, c, c_stride, accumulate);
    default:
      return gemm_tile_rows<6>(K, a, a_stride, b, c, c_stride, accumulate);
  }
}

// Transposes four rows into a panel: their elements at position k go to dst(k)[0:4].
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
