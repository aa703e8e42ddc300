// Products by the tile unit of AMX, which multiplies 16 rows, 16 columns and 16 units in one
// instruction. Part of the body of gemm() (foreach_level.h), whose units and panels are what tiles
// hold as they are.
#ifndef PVT_BODY_TILES
#define PVT_BODY_TILES

#include "cpu/gemm.h"

// Rows, columns and units of a tile: 1 KB. A square is two of rows and two of columns.
constexpr int kTile = 16;
constexpr int kSquare = 2 * kTile;

// Types of which instructions multiply several to a unit.
template <class scalar_t>
constexpr bool kHasTiles = (Operand<scalar_t>::kPerUnit > 1);

// How `rows` are divided: tiles of one height, of which the last two may share rows.
inline int64_t tiles_of(int64_t rows) {
  return (rows + kTile - 1) / kTile;
}
inline int64_t tile_height(int64_t rows) {
  return rows == 0 ? 0 : (rows + tiles_of(rows) - 1) / tiles_of(rows);
}

// The eight tiles: sums 0 to 3 of a square, row by row; 4 and 5 of the left-hand side, 6 and 7 of
// the right-hand side.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tiles are in use by this thread as long as this lives, with `height` rows of sums and of the
// left-hand side in each; 0: they are not.
class TilesInUse {
 public:
  explicit TilesInUse(int64_t height) : any_(height > 0) {
    if (any_) {
      const auto rows = static_cast<uint8_t>(height);
      const TileConfig config{1,
                              0,
                              {},
                              {64, 64, 64, 64, 64, 64, 64, 64},
                              {rows, rows, rows, rows, rows, rows, kTile, kTile}};
      // The instruction reads all of it, of which some compilers' headers do not tell.
      asm volatile("" ::"r"(&config) : "memory");
      _tile_loadconfig(&config);
    }
  }
  ~TilesInUse() {
    if (any_) {
      _tile_release();
    }
  }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;

 private:
  bool any_;
};

// What a square is computed from: one or two tiles of rows and of columns.
struct Square {
  int64_t steps;       // of kTile units
  const float* a[2];   // the first row of each tile, beyond its header
  int64_t a_stride;    // units
  const float* b;      // its panels
  int64_t b_stride;    // units
  const float* ahead;  // ahead_lines to read into cache meanwhile, in each step
  int64_t ahead_lines;
};

// Tiles are named by literals: compilers put them into the instruction's text.
#define PVT_MULTIPLY_TILES(sum, left, right)      \
  if constexpr (Operand<scalar_t>::kHeader > 0) { \
    _tile_dpbsud(sum, left, right);               \
  } else {                                        \
    _tile_dpbf16ps(sum, left, right);             \
  }

// sums[tile] <- the products of tile, of float32 or of 32-bit integers, in four tiles' order
template <class scalar_t, int kRowTiles, int kColumnTiles>
inline void multiply_square(const Square& square, float (&sums)[4][kTile * kTile]) {
  constexpr int64_t kLine = 64;  // bytes
  const int64_t a_stride = square.a_stride * static_cast<int64_t>(sizeof(float));
  const float *upper = square.a[0], *lower = square.a[1], *b = square.b, *ahead = square.ahead;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < square.steps; ++step) {
    for (int64_t line = 0; line < square.ahead_lines; ++line, ahead += kTile) {
      __builtin_prefetch(ahead, 0, 2);
    }
    _tile_loadd(4, upper, a_stride);
    _tile_loadd(6, b, kLine);
    PVT_MULTIPLY_TILES(0, 4, 6)
    if constexpr (kColumnTiles == 2) {
      _tile_loadd(7, b + square.b_stride, kLine);
      PVT_MULTIPLY_TILES(1, 4, 7)
    }
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, lower, a_stride);
      PVT_MULTIPLY_TILES(2, 5, 6)
      if constexpr (kColumnTiles == 2) {
        PVT_MULTIPLY_TILES(3, 5, 7)
      }
    }
    upper += kTile, lower += kTile, b += kTile * kPanel;
  }
  _tile_stored(0, sums[0], kLine);
  if constexpr (kColumnTiles == 2) {
    _tile_stored(1, sums[1], kLine);
  }
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, sums[2], kLine);
    if constexpr (kColumnTiles == 2) {
      _tile_stored(3, sums[3], kLine);
    }
  }
}

#undef PVT_MULTIPLY_TILES

template <class scalar_t>
inline void multiply_square(int row_tiles, int column_tiles, const Square& square,
                            float (&sums)[4][kTile * kTile]) {
  const auto run = row_tiles == 1      ? column_tiles == 1 ? multiply_square<scalar_t, 1, 1>
                                                           : multiply_square<scalar_t, 1, 2>
                        : column_tiles == 1 ? multiply_square<scalar_t, 2, 1>
                                       : multiply_square<scalar_t, 2, 2>;
  run(square, sums);
}

// What a tile's sums of a row give.
//   header: of the row's block
template <class scalar_t>
inline Vec total_of(Vec sum, const float* header) {
  using Op = Operand<scalar_t>;
  if constexpr (Op::kHeader == 0) {
    return sum;
  } else {
    const UintVec integers = (UintVec)sum + (UintVec)Op::first_sum(header);
    return Op::total((IntVec)integers, header);
  }
}

#endif  // PVT_BODY_TILES
