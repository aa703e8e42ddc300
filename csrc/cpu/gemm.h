// A register-tiled matrix product on packed panels: the inner loop of every CPU kernel. Part of a
// kernel body (see foreach_level.h).
//
// A row of the left-hand matrix is a row of units (operand.h). A panel is kPanel columns of the
// right-hand matrix, row of units after row of units, [K][kPanel]; columns beyond the matrix are
// zero. Packed weights (pvt_ext/packing.py) have this layout in the model file.
#ifndef PVT_BODY_GEMM
#define PVT_BODY_GEMM

#include "cpu/operand.h"
#include "cpu/operand_bf16.h"
#include "cpu/operand_int8.h"
#include "cpu/operand_split.h"

constexpr int kPanel = 16;
constexpr int kTileColumns = kTileVecs * kLanes;
constexpr int kTileRows = 6;

// Types whose units are what the tile unit multiplies (gemm_squares.h): several to a unit.
#if PVT_LEVEL == PVT_LEVEL_AMX
template <class scalar_t>
constexpr bool kHasTiles = (Operand<scalar_t>::kPerUnit > 1);
constexpr int64_t kFewRows = 32;  // a square
#else
template <class scalar_t>
constexpr bool kHasTiles = false;
constexpr int64_t kFewRows = 4 * kTileRows;
#endif
// kFewRows: that pass a product together where what comes of them is to stay in the first-level
// cache.

// Types whose products the tile unit takes, in parts or not.
template <class scalar_t>
constexpr bool kOnTiles = kHasTiles<scalar_t> || kSplits<scalar_t>;

// 108 x 512 channels are half of a second-level cache. Tiles multiply so fast that weights, which
// all rows read, have to be read more rarely.
template <class scalar_t>
constexpr RowLimits kRowLimits = kOnTiles<scalar_t> ? RowLimits{208, 32} : RowLimits{108, 1};

// Columns of a weight that a thread takes at once, where columns are dealt out, at most. Of many
// the first, which are read or taken apart while nothing is multiplied, are a small part.
template <class scalar_t>
constexpr int64_t kMostColumns = kOnTiles<scalar_t>          ? 256
                                 : kTileColumns < 2 * kPanel ? 2 * kPanel
                                                             : kTileColumns;

// Where column j is, from column 0 of panels that are panel_stride units apart.
constexpr int64_t panel_offset(uint64_t j, int64_t panel_stride) {
  return static_cast<int64_t>(j / kPanel) * panel_stride + static_cast<int64_t>(j % kPanel);
}

// Inputs that are summed before the sums are stored. A tile's are stored after each block, so that
// as many as there may be are taken.
template <class scalar_t>
constexpr int64_t kBlockInputs =
    (kHasTiles<scalar_t> && Operand<scalar_t>::kHeader == 0) || kSplits<scalar_t> ? 2 * kSumBlock
                                                                                  : kSumBlock;

// c = (accumulate ? c : 0) + a b   for any number of rows and of columns
//   K: right-hand units; a starts at a multiple of kSumBlock inputs
//   a: left-hand rows, a_stride units apart   b: panels [K][kPanel], panel_stride units apart
//   c: rows c_stride apart, columns rounded up to whole vectors
//   next: what is read meanwhile   kept: where what is multiplied in parts is taken apart, `next`
//   included, if it is kept until the next product, which has to be that of `next`
template <class scalar_t>
void gemm(int64_t rows, int64_t columns, int64_t K, const float* a, int64_t a_stride,
          const float* b, int64_t panel_stride, float* c, int64_t c_stride, bool accumulate,
          const NextPanels& next = {}, SplitBlocks* kept = nullptr);

#if PVT_LEVEL == PVT_LEVEL_AMX
template <>
void gemm<PackedFloat>(int64_t rows, int64_t columns, int64_t K, const float* a, int64_t a_stride,
                       const float* b, int64_t panel_stride, float* c, int64_t c_stride,
                       bool accumulate, const NextPanels& next, SplitBlocks* kept);
#else
template <>
inline void gemm<PackedFloat>(int64_t rows, int64_t columns, int64_t K, const float* a,
                              int64_t a_stride, const float* b, int64_t panel_stride, float* c,
                              int64_t c_stride, bool accumulate, const NextPanels& next,
                              SplitBlocks* /*kept*/) {
  gemm<float>(rows, columns, K, a, a_stride, b, panel_stride, c, c_stride, accumulate, next);
}
#endif

// A right-hand side that is made at run time is made as it is multiplied: of panels, or of their
// parts, kPreparedColumns columns together.
template <class scalar_t>
constexpr int64_t kPreparedColumns = kSplits<scalar_t> ? 2 * kPanel : kPanel;

// Units of one of its columns of `inputs` inputs.
template <class scalar_t>
inline int64_t prepared_depth(int64_t inputs) {
  return kSplits<scalar_t> ? left_units<scalar_t>(inputs) : right_units<scalar_t>(inputs);
}

template <class scalar_t>
inline int64_t prepared_size(int64_t inputs, int64_t columns) {
  return round_up(columns, kPreparedColumns<scalar_t>) * prepared_depth<scalar_t>(inputs);
}

// Where input k of the panel of column j is, in columns of `depth` units.
//   j: a multiple of kPanel   k: a multiple of what a unit, or a group, holds
template <class scalar_t>
inline int64_t prepared_offset(int64_t j, int64_t k, int64_t depth) {
  if constexpr (kSplits<scalar_t>) {
    return j / kPreparedColumns<scalar_t> * kPreparedColumns<scalar_t> * depth +
           j % kPreparedColumns<scalar_t> * kPanel + k / kSplitGroup * kStepUnits;
  } else {
    return j * depth + k / Operand<scalar_t>::kPerUnit * kPanel;
  }
}

// gemm() with such a right-hand side.
//   K: units of a column that are summed   depth: units from a column to the next
template <class scalar_t>
inline void gemm_prepared(int64_t rows, int64_t columns, int64_t K, const float* a,
                          int64_t a_stride, const float* b, int64_t depth, float* c,
                          int64_t c_stride, bool accumulate) {
  gemm<scalar_t>(rows, columns, K, a, a_stride, b, depth * kPanel, c, c_stride, accumulate);
}
#if PVT_LEVEL == PVT_LEVEL_AMX
template <>
void gemm_prepared<PackedFloat>(int64_t rows, int64_t columns, int64_t K, const float* a,
                                int64_t a_stride, const float* b, int64_t depth, float* c,
                                int64_t c_stride, bool accumulate);
#endif

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

#endif  // PVT_BODY_GEMM
