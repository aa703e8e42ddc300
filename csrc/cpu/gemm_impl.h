// The pointer-level body of gemm(), compiled once per CPU level (foreach_level.h).

#include "cpu/gemm_rows.h"
#if PVT_LEVEL == PVT_LEVEL_AMX
#include "cpu/gemm_squares.h"
//
#include "cpu/split_squares.h"
#endif

// Panels of units as panels of floats: [block.depth * kSteps][kPanel] each, one after the other.
template <class scalar_t>
inline void unpack(const NextPanels& block, float* floats) {
  for (int64_t column = 0; column < block.columns; column += kPanel) {
    const float* units = block.panels + panel_offset(column, block.panel_stride);
    for (int64_t at = 0; at < block.depth * kPanel; at += kPanel) {
      for (int step = 0; step < Operand<scalar_t>::kSteps; ++step, floats += kPanel) {
        for (int j = 0; j < kPanel; j += kLanes) {
          store(floats + j, Operand<scalar_t>::right_part(load(units + at + j), step));
        }
      }
    }
  }
}

// c[:, 0:columns] of a block of panels.
//   next: read into cache meanwhile
template <class scalar_t>
inline void gemm_block(int64_t rows, int64_t columns, const Tile& first, const Strides& strides,
                       const NextPanels& next) {
  const int64_t vecs = (columns + kLanes - 1) / kLanes;
#if PVT_LEVEL == PVT_LEVEL_AMX
  if constexpr (kHasTiles<scalar_t>) {
    const int64_t whole = first.K / kTile * kTile;
    // The rest of a row of integers would add the row's offset once more.
    if (whole == first.K || (whole > 0 && Operand<scalar_t>::kHeader == 0)) {
      gemm_squares<scalar_t>(rows, columns, first, strides, {next, (tiles_of(rows) + 1) / 2, 1});
      if (whole < first.K) {
        const Tile rest{first.K - whole,
                        first.a + whole,
                        first.b + whole * kPanel,
                        first.c,
                        /*accumulate=*/true,
                        first.ahead,
                        0};
        gemm_rows<scalar_t>(rows, vecs, rest, strides, {{}, row_groups(rows), 1});
      }
      return;
    }
  }
#endif
  gemm_rows<scalar_t>(rows, vecs, first, strides, {next, row_groups(rows), 1});
}

template <class scalar_t>
void gemm(int64_t rows, int64_t columns, int64_t K, const float* a, int64_t a_stride,
          const float* b, int64_t panel_stride, float* c, int64_t c_stride, bool accumulate,
          const NextPanels& next, SplitBlocks* /*kept*/) {
  using Op = Operand<scalar_t>;
  constexpr int64_t kBlock = kBlockInputs<scalar_t> / Op::kPerUnit;
  constexpr int64_t kBlockUnits = kBlock * Op::kSteps + Op::kHeader;
  constexpr int64_t kUnpackTiles = 8;  // for fewer it takes longer than it saves
  const bool unpacks = Op::kUnpacks && row_groups(rows) >= kUnpackTiles;
#if PVT_LEVEL == PVT_LEVEL_AMX
  if constexpr (kHasTiles<scalar_t>) {
    use_tiles(tile_height(rows));
  }
#endif
  // 64 KB: in the second-level cache while all rows pass.
  alignas(64) float unpacked[Op::kUnpacks ? kSumBlock * kTileColumns : 1];
  // Columns [j, ...) of units [k, ...) of the sum.
  const auto block_at = [=](int64_t j, int64_t k) {
    return NextPanels{b + panel_offset(j, panel_stride) + k * kPanel, panel_stride,
                      columns - j < kTileColumns ? columns - j : kTileColumns,
                      K - k < kBlock ? K - k : kBlock};
  };
  for (int64_t j = 0; j < columns; j += kTileColumns) {
    for (int64_t k = 0; k < K; k += kBlock) {
      const NextPanels block = block_at(j, k);
      const NextPanels after = k + kBlock < K               ? block_at(j, k + kBlock)
                               : j + kTileColumns < columns ? block_at(j + kTileColumns, 0)
                                                            : next;
      const Strides strides{a_stride, panel_stride, c_stride};
      const Tile first{block.depth,
                       a + k / kBlock * kBlockUnits,
                       block.panels,
                       c + j,
                       accumulate || k > 0,
                       block.panels,
                       0};
      if (unpacks) {
        unpack<scalar_t>(block, unpacked);
        Tile floats = first;
        floats.K *= Op::kSteps;
        floats.b = unpacked;
        gemm_rows<float>(rows, (block.columns + kLanes - 1) / kLanes, floats,
                         {a_stride, floats.K * kPanel, c_stride},
                         {after, row_groups(rows), Op::kSteps});
      } else {
        gemm_block<scalar_t>(rows, block.columns, first, strides, after);
      }
    }
  }
}

#if PVT_LEVEL == PVT_LEVEL_AMX
template <>
void gemm<PackedFloat>(int64_t rows, int64_t columns, int64_t K, const float* a, int64_t a_stride,
                       const float* b, int64_t panel_stride, float* c, int64_t c_stride,
                       bool accumulate, const NextPanels& next, SplitBlocks* kept) {
  gemm_split({rows, columns, K, a, a_stride, b, panel_stride}, c, c_stride, accumulate, next, kept);
}

template <>
void gemm_prepared<PackedFloat>(int64_t rows, int64_t columns, int64_t K, const float* a,
                                int64_t a_stride, const float* b, int64_t depth, float* c,
                                int64_t c_stride, bool accumulate) {
  gemm_prepared_split(rows, columns, K, a, a_stride, b, depth, c, c_stride, accumulate);
}
#endif

#define PVT_GEMM(scalar_t)                                                                     \
  template void gemm<scalar_t>(int64_t, int64_t, int64_t, const float*, int64_t, const float*, \
                               int64_t, float*, int64_t, bool, const NextPanels&, SplitBlocks*);
PVT_GEMM(float)
PVT_GEMM(BFloat16)
PVT_GEMM(int8_t)
PVT_GEMM(Half)
#undef PVT_GEMM
