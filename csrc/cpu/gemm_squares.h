// A block of panels by the tile unit of AMX, which multiplies 16 rows, 16 columns and 16 units in
// one instruction: units and panels are what tiles hold as they are. Part of the body of gemm()
// (gemm_impl.h).

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

// sums[0] to sums[3] <- those of the square's tiles, float32 or 32-bit integers; those that there
// are
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
  if (row_tiles == 2) {
    column_tiles == 2 ? multiply_square<scalar_t, 2, 2>(square, sums)
                      : multiply_square<scalar_t, 2, 1>(square, sums);
  } else {
    column_tiles == 2 ? multiply_square<scalar_t, 1, 2>(square, sums)
                      : multiply_square<scalar_t, 1, 1>(square, sums);
  }
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

// All rows of a block of panels, of all units that fill tiles.
//   first: as for gemm_rows()
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
