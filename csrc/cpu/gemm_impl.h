// The pointer-level body of gemm(), compiled once per CPU level (foreach_level.h).

#include "cpu/gemm.h"
#if PVT_LEVEL == PVT_LEVEL_AMX
#include "cpu/tiles.h"
#endif

// What a tile is computed from: some rows and vectors of c.
struct Tile {
  int64_t K;       // right-hand units
  const float* a;  // its rows, each with its header
  const float* b;  // its first column in its panel
  float* c;
  bool accumulate;
  // Read into cache meanwhile: what is at ahead + k * ahead_step while the sum is at unit k.
  const float* ahead;
  int64_t ahead_step;
};

// The distances of rows and panels, common to all tiles.
struct Strides {
  int64_t a, panel, c;
};

// c[i][0:kVecs] = (accumulate ? c[i] : 0) + sum_k a[i][k] * b[k]   for i < kRows, k < K units
// The sum over k starts at zero and is added to c at its end: long sums built block by block keep
// the accuracy of a blocked sum. Every element is summed in the order of k whatever kRows and kVecs
// are, so the result does not depend on how rows and columns are grouped into tiles.
template <class scalar_t, int kRows, int kVecs>
inline void gemm_tile(const Tile& tile, const Strides& strides) {
  using Op = Operand<scalar_t>;
  const int64_t K = tile.K, a_stride = strides.a, ahead_step = tile.ahead_step;
  const float *header = tile.a, *b = tile.b, *ahead = tile.ahead;
  // Unrolled, so that sum[][] is registers and nothing else.
  typename Op::Sum sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      sum[i][j] = Op::first_sum(header + i * a_stride);
    }
  }
  const float* a = header + Op::kHeader;
  for (int64_t k = 0; k < K; ++k) {
    if constexpr (Op::kSteps == 1) {  // else memory is fast enough beside the instructions
      __builtin_prefetch(ahead, 0, 2);
      ahead += ahead_step;
    }
#pragma GCC unroll 4
    for (int step = 0; step < Op::kSteps; ++step) {
      Vec column[kVecs];
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) {
        column[j] =
            Op::right_part(load(b + panel_offset(j * kLanes, strides.panel) + k * kPanel), step);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Vec left = broadcast(a[i * a_stride + k * Op::kSteps + step]);
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) {
          Op::multiply_add(left, column[j], sum[i][j]);
        }
      }
    }
  }
  // Copies, since every store could change a member of tile.
  float* const c = tile.c;
  const int64_t c_stride = strides.c;
  const bool accumulate = tile.accumulate;
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
inline void gemm_tile_vecs(int64_t vecs, const Tile& tile, const Strides& strides) {
  static_assert(kTileVecs == 2 || kTileVecs == 4);
  switch (vecs) {
    case 1:
      return gemm_tile<scalar_t, kRows, 1>(tile, strides);
    case 2:
      return gemm_tile<scalar_t, kRows, 2>(tile, strides);
#if PVT_LEVEL >= PVT_LEVEL_AVX512
    case 3:
      return gemm_tile<scalar_t, kRows, 3>(tile, strides);
    default:
      return gemm_tile<scalar_t, kRows, 4>(tile, strides);
#endif
  }
}

template <class scalar_t>
inline void gemm_tile(int64_t rows, int64_t vecs, const Tile& tile, const Strides& strides) {
  const auto run = rows == 1   ? gemm_tile_vecs<scalar_t, 1>
                   : rows == 2 ? gemm_tile_vecs<scalar_t, 2>
                   : rows == 3 ? gemm_tile_vecs<scalar_t, 3>
                   : rows == 4 ? gemm_tile_vecs<scalar_t, 4>
                   : rows == 5 ? gemm_tile_vecs<scalar_t, 5>
                               : gemm_tile_vecs<scalar_t, 6>;
  run(vecs, tile, strides);
}

// Deals out to the tiles of one block what they read ahead of the next: tile t the t-th part, at an
// even pace, so that memory is busy all the time and no tile waits for it.
class ReadAhead {
 public:
  // steps: of a tile's sum, per unit
  ReadAhead(const NextPanels& next, int64_t tiles, int64_t steps)
      : next_(next),
        parts_((next.columns + kPanel - 1) / kPanel * kPanel),
        steps_(steps),
        per_tile_(steps) {
    // Parts are kPanel of a panel; a tile takes a number of them that divides it, or all.
    while (per_tile_ < kPanel && per_tile_ * tiles < parts_) {
      per_tile_ *= 2;
    }
  }

  void deal(int64_t t, Tile& tile) const {
    const int64_t part = t * per_tile_;
    if (part < parts_) {
      tile.ahead = next_.panels + part / kPanel * next_.panel_stride + part % kPanel * next_.depth;
      tile.ahead_step = per_tile_ / steps_;
    }
  }

 private:
  NextPanels next_;
  int64_t parts_, steps_, per_tile_;
};

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

inline int64_t row_groups(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

// All rows of a block of panels, in tiles of registers.
//   first: what the tile of row 0 is computed from
template <class scalar_t>
inline void gemm_rows(int64_t rows, int64_t vecs, const Tile& first, const Strides& strides,
                      const ReadAhead& read_ahead) {
  const int64_t tiles = row_groups(rows);
  int64_t row = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    // Of almost equal height: 50 rows are 5 x 6 + 4 x 5, not 8 x 6 + 2.
    const int64_t height = (rows - row + tiles - t - 1) / (tiles - t);
    Tile tile = first;
    tile.a += row * strides.a;
    tile.c += row * strides.c;
    read_ahead.deal(t, tile);
    gemm_tile<scalar_t>(height, vecs, tile, strides);
    row += height;
  }
}

#if PVT_LEVEL == PVT_LEVEL_AMX
// The same in squares of the tile unit, of all units that fill tiles.
template <class scalar_t>
inline void gemm_squares(int64_t rows, int64_t columns, const Tile& first, const Strides& strides,
                         const ReadAhead& read_ahead) {
  using Op = Operand<scalar_t>;
  const int64_t tiles = tiles_of(rows), height = tile_height(rows);
  // The last tile ends with the last row; it may begin with rows that the one before has too.
  const auto begin = [=](int64_t t) { return t + 1 < tiles ? t * height : rows - height; };
  alignas(64) float sums[4][kTile * kTile];
  for (int64_t t = 0; t < tiles; t += 2) {
    const int row_tiles = t + 1 < tiles ? 2 : 1;
    Tile tile = first;
    read_ahead.deal(t / 2, tile);
    const float* const a = first.a + Op::kHeader;
    Square square{
        first.K / kTile, {a + begin(t) * strides.a, a + begin(t + row_tiles - 1) * strides.a},
        strides.a,       first.b,
        strides.panel,   tile.ahead,
        tile.ahead_step};
    for (int64_t j = 0; j < columns; j += kSquare) {
      const int column_tiles = columns - j <= kTile ? 1 : 2;
      square.b = first.b + panel_offset(j, strides.panel);
      multiply_square<scalar_t>(row_tiles, column_tiles, square, sums);
      square.ahead_lines = 0;  // all are read
      for (int r = 0; r < row_tiles; ++r) {
        for (int64_t row = (t + r) * height; row < begin(t + r) + height; ++row) {
          const float* sum = sums[2 * r] + (row - begin(t + r)) * kTile;
          float* out = first.c + row * strides.c + j;
          for (int c = 0; c < column_tiles; ++c, sum += kTile * kTile, out += kTile) {
            const Vec total = total_of<scalar_t>(load(sum), first.a + row * strides.a);
            store(out, first.accumulate ? load(out) + total : total);
          }
        }
      }
    }
  }
}
#endif

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
          const NextPanels& next) {
  using Op = Operand<scalar_t>;
  constexpr int64_t kBlock = kSumBlock / Op::kPerUnit;
  constexpr int64_t kBlockUnits = kBlock * Op::kSteps + Op::kHeader;
  constexpr int64_t kUnpackTiles = 8;  // for fewer it takes longer than it saves
  const bool unpacks = Op::kUnpacks && row_groups(rows) >= kUnpackTiles;
#if PVT_LEVEL == PVT_LEVEL_AMX
  const TilesInUse tiles(kHasTiles<scalar_t> ? tile_height(rows) : 0);
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

#define PVT_GEMM(scalar_t)                                                                     \
  template void gemm<scalar_t>(int64_t, int64_t, int64_t, const float*, int64_t, const float*, \
                               int64_t, float*, int64_t, bool, const NextPanels&);
PVT_GEMM(float)
PVT_GEMM(BFloat16)
PVT_GEMM(int8_t)
PVT_GEMM(Half)
#undef PVT_GEMM
