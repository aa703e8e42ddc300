// Products by the tile unit of AMX, which multiplies 16 rows, 16 columns and 16 units in one
// instruction: units and panels are what tiles hold as they are. Part of a kernel body
// (foreach_level.h).
#ifndef PVT_BODY_GEMM_SQUARES
#define PVT_BODY_GEMM_SQUARES

#include "cpu/gemm_rows.h"

// Rows, columns and units of a tile: 1 KB. A square is two of rows and two of columns.
constexpr int kTile = 16;
constexpr int kSquare = 2 * kTile;

// How `rows` are divided: tiles of one height, of which the last two may share rows.
inline int64_t tiles_of(int64_t rows) {
  return (rows + kTile - 1) / kTile;
}
inline int64_t tile_height(int64_t rows) {
  return rows == 0 ? 0 : (rows + tiles_of(rows) - 1) / tiles_of(rows);
}

// Two tiles of rows, or one.
struct RowPair {
  int64_t begin[2];  // the first row of each; equal if there is one
  int tiles;
};

// run(pair) for all rows. The last two tiles, which may share rows, are a pair: both read what is
// there before either adds to it.
template <class Run>
inline void foreach_row_pair(int64_t rows, const Run& run) {
  const int64_t tiles = tiles_of(rows), height = tile_height(rows);
  const auto begin = [=](int64_t t) { return t + 1 < tiles ? t * height : rows - height; };
  int64_t t = 0;
  if (tiles % 2 == 1) {
    run(RowPair{{begin(0), begin(0)}, 1});
    t = 1;
  }
  for (; t < tiles; t += 2) {
    run(RowPair{{begin(t), begin(t + 1)}, 2});
  }
}

// The eight tiles: sums 0 to 3 of a square, row by row; 4 and 5 of the left-hand side, 6 and 7 of
// the right-hand side.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// This thread's tiles have `height` rows of sums and of the left-hand side each from here on. As
// long as they had before, it takes a tenth of the time; parallel_for() gives them back.
inline void use_tiles(int64_t height) {
  if (height == 0) {
    return;
  }
  const auto rows = static_cast<uint8_t>(height);
  const TileConfig config{1,
                          0,
                          {},
                          {64, 64, 64, 64, 64, 64, 64, 64},
                          {rows, rows, rows, rows, rows, rows, kTile, kTile}};
  TileConfig in_use;
  _tile_storeconfig(&in_use);
  // The instructions read and write all of them, of which some compilers' headers do not tell.
  asm volatile("" : "+m"(in_use) : "m"(config));
  if (__builtin_memcmp(&in_use, &config, sizeof config) != 0) {
    _tile_loadconfig(&config);
  }
}

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

// Tiles 0 to 3, those that there are, <- sums, or zeros.   sums: as for multiply_square()
template <int kRowTiles, int kColumnTiles>
inline void start_sums(float* const (&sums)[4], int64_t stride, bool accumulate) {
  // Tiles are loaded behind the compiler's back.
  asm volatile("" ::: "memory");
  if (!accumulate) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    return;
  }
  _tile_loadd(0, sums[0], stride);
  if constexpr (kColumnTiles == 2) {
    _tile_loadd(1, sums[1], stride);
  }
  if constexpr (kRowTiles == 2) {
    _tile_loadd(2, sums[2], stride);
    if constexpr (kColumnTiles == 2) {
      _tile_loadd(3, sums[3], stride);
    }
  }
}

template <int kRowTiles, int kColumnTiles>
inline void store_sums(float* const (&sums)[4], int64_t stride) {
  _tile_stored(0, sums[0], stride);
  if constexpr (kColumnTiles == 2) {
    _tile_stored(1, sums[1], stride);
  }
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, sums[2], stride);
    if constexpr (kColumnTiles == 2) {
      _tile_stored(3, sums[3], stride);
    }
  }
}

// Tiles are named by literals: compilers put them into the instruction's text.
#define PVT_MULTIPLY_TILES(sum, left, right)      \
  if constexpr (Operand<scalar_t>::kHeader > 0) { \
    _tile_dpbsud(sum, left, right);               \
  } else {                                        \
    _tile_dpbf16ps(sum, left, right);             \
  }

// The sums of a square's tiles, float32 or 32-bit integers, are added to what the four of `sums`
// hold, or take its place; those that there are.
//   sums: the first row of each tile, rows sums_stride units apart
//   between(step): what else is to be done; the tile unit is at that step meanwhile
template <class scalar_t, int kRowTiles, int kColumnTiles, class Between>
inline void multiply_square(const Square& square, float* const (&sums)[4], int64_t sums_stride,
                            bool accumulate, const Between& between) {
  constexpr int64_t kLine = 64;  // bytes
  const int64_t a_stride = square.a_stride * static_cast<int64_t>(sizeof(float));
  sums_stride *= static_cast<int64_t>(sizeof(float));
  const float *upper = square.a[0], *lower = square.a[1], *b = square.b, *ahead = square.ahead;
  start_sums<kRowTiles, kColumnTiles>(sums, sums_stride, accumulate);
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
    between(step);
  }
  store_sums<kRowTiles, kColumnTiles>(sums, sums_stride);
}

#undef PVT_MULTIPLY_TILES

template <class scalar_t, class Between>
inline void multiply_square(int row_tiles, int column_tiles, const Square& square,
                            float* const (&sums)[4], int64_t sums_stride, bool accumulate,
                            const Between& between) {
  const auto run = row_tiles == 2 ? column_tiles == 2 ? multiply_square<scalar_t, 2, 2, Between>
                                                      : multiply_square<scalar_t, 2, 1, Between>
                   : column_tiles == 2 ? multiply_square<scalar_t, 1, 2, Between>
                                       : multiply_square<scalar_t, 1, 1, Between>;
  run(square, sums, sums_stride, accumulate, between);
}

// What a tile's sums of a row of integers give.   header: of the row's block
inline Vec total_of_tile(Vec sum, const float* header) {
  using Op = Operand<int8_t>;
  const UintVec integers = (UintVec)sum + (UintVec)Op::first_sum(header);
  return Op::total((IntVec)integers, header);
}

// c[0:height] (+)= what the sums of a tile of integers give, 16 columns
//   sums: [height, kTile]   headers: of the rows' blocks, header_stride apart
inline void total_tile(const float* sums, int64_t height, const float* headers,
                       int64_t header_stride, float* c, int64_t c_stride, bool accumulate) {
  for (int64_t i = 0; i < height; ++i) {
    const Vec total = total_of_tile(load(sums + i * kTile), headers + i * header_stride);
    float* out = c + i * c_stride;
    store(out, accumulate ? load(out) + total : total);
  }
}

// All rows of a block of panels, of all units that fill tiles.
//   first: as for gemm_rows()
template <class scalar_t>
inline void gemm_squares(int64_t rows, int64_t columns, const Tile& first, const Strides& strides,
                         const ReadAhead& read_ahead) {
  using Op = Operand<scalar_t>;
  constexpr auto nothing = [](int64_t /*step*/) {};
  const int64_t height = tile_height(rows);
  const float* const a = first.a + Op::kHeader;
  alignas(64) float integers[4][kTile * kTile];
  int64_t group = 0;
  foreach_row_pair(rows, [&](const RowPair& pair) {
    Tile tile = first;
    read_ahead.deal(group++, tile);
    Square square{first.K / kTile, {a + pair.begin[0] * strides.a, a + pair.begin[1] * strides.a},
                  strides.a,       first.b,
                  strides.panel,   tile.ahead,
                  tile.ahead_step};
    for (int64_t j = 0; j < columns; j += kSquare) {
      const int column_tiles = columns - j <= kTile ? 1 : 2;
      square.b = first.b + panel_offset(j, strides.panel);
      float* const c[2] = {first.c + pair.begin[0] * strides.c + j,
                           first.c + pair.begin[1] * strides.c + j};
      if constexpr (Op::kHeader == 0) {
        multiply_square<scalar_t>(pair.tiles, column_tiles, square,
                                  {c[0], c[0] + kTile, c[1], c[1] + kTile}, strides.c,
                                  first.accumulate, nothing);
      } else {
        multiply_square<scalar_t>(pair.tiles, column_tiles, square,
                                  {integers[0], integers[1], integers[2], integers[3]}, kTile,
                                  /*accumulate=*/false, nothing);
        for (int r = 0; r < pair.tiles; ++r) {
          const int64_t shared = r == 0 ? 0 : pair.begin[0] + height - pair.begin[1];
          const float* headers = first.a + (pair.begin[r] + shared) * strides.a;
          for (int k = 0; k < column_tiles; ++k) {
            total_tile(integers[2 * r + k] + shared * kTile, height - shared, headers, strides.a,
                       c[r] + shared * strides.c + k * kTile, strides.c, first.accumulate);
          }
        }
      }
      square.ahead_lines = 0;  // all are read
    }
  });
}

#endif  // PVT_BODY_GEMM_SQUARES
