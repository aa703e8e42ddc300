// A block of panels by tiles of registers. Part of the body of gemm() (gemm_impl.h).

#ifndef PVT_BODY_GEMM_ROWS
#define PVT_BODY_GEMM_ROWS

#include "cpu/gemm.h"

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

inline int64_t row_groups(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

// All rows of a block of panels.
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

#endif  // PVT_BODY_GEMM_ROWS
