// Products of floats by the tile unit, in parts (operand_split.h). Part of a kernel body
// (foreach_level.h).
//
// 32 columns of the right-hand side are taken apart while those before them are multiplied, a row
// or a few at a time: the tile unit and the vector unit work at the same time.
#ifndef PVT_BODY_SPLIT_SQUARES
#define PVT_BODY_SPLIT_SQUARES

#include "cpu/gemm_squares.h"

inline int64_t split_steps(int64_t inputs) {
  return (inputs + kSplitGroup - 1) / kSplitGroup;
}

// Takes panels of at most kSquare columns apart, a few rows of units at a time.
class SplitPanels {
 public:
  // units: [split_steps(block.depth)][kStepUnits]   ahead: read into cache meanwhile
  SplitPanels(const NextPanels& block, const NextPanels& ahead, float* units)
      : block_(block), ahead_(ahead), rows_(split_steps(block.depth) * kTile), units_(units) {}

  int64_t rows_left() const { return rows_ - done_; }

  void advance(int64_t count) {
    // Copies, since every store could change a member.
    const NextPanels block = block_, ahead = ahead_;
    const int64_t end = count < rows_left() ? done_ + count : rows_;
    for (int64_t i = done_; i < end; ++i) {
      const int64_t step = i / kTile, row = i % kTile, k = step * kSplitGroup + row;
      float* const to = units_ + step * kStepUnits + row * kTile;
      split_row(block.panels, block.depth, k, to);
      read_ahead(ahead.panels, ahead.depth, k);
      if (block.columns > kPanel) {
        split_row(block.panels + block.panel_stride, block.depth, k, to + kTile * kTile);
        read_ahead(ahead.panels + ahead.panel_stride, ahead.depth, k);
      }
    }
    done_ = end;
  }

 private:
  // The unit that starts with input k.
  static void split_row(const float* panel, int64_t depth, int64_t k, float* to) {
    const float* row = panel + k * kPanel;
    split_unit(k < depth ? load(row) : Vec{},
               k + kTile < depth ? load(row + kTile * kPanel) : Vec{}, to, 2 * kTile * kTile);
  }
  static void read_ahead(const float* panel, int64_t depth, int64_t k) {
    if (k + kTile < depth) {
      __builtin_prefetch(panel + k * kPanel, 0, 2);
      __builtin_prefetch(panel + (k + kTile) * kPanel, 0, 2);
    }
  }

  NextPanels block_, ahead_;
  int64_t rows_, done_ = 0;
  float* units_;
};

// Products of a step, four tiles each, with time for something else after each.
constexpr int64_t kTurns = 6;

// What a square is computed from: one or two tiles of rows and of columns.
struct SplitSquare {
  int64_t steps;      // of kSplitGroup inputs
  const float* a[2];  // the first row of each tile
  int64_t a_stride;   // units
  const float* b;     // its columns' steps
};

constexpr int64_t kTileLine = 64;  // bytes

// Tiles 6 and 7, those that there are, <- columns.   b: one part of a step
template <int kColumnTiles>
inline void load_columns(const float* b) {
  _tile_loadd(6, b, kTileLine);
  if constexpr (kColumnTiles == 2) {
    _tile_loadd(7, b + kTile * kTile, kTileLine);
  }
}

// Tiles 4 and 5 <- rows, and their products with columns that are there. A tile is loaded when it
// is needed.   stride: bytes
template <int kRowTiles, int kColumnTiles>
inline void multiply_with_rows(const float* upper, const float* lower, int64_t stride) {
  _tile_loadd(4, upper, stride);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kColumnTiles == 2) {
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (kRowTiles == 2) {
    _tile_loadd(5, lower, stride);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kColumnTiles == 2) {
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// load_columns(), and their products with rows that are there.
template <int kRowTiles, int kColumnTiles>
inline void multiply_with_columns(const float* b) {
  _tile_loadd(6, b, kTileLine);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kRowTiles == 2) {
    _tile_dpbf16ps(2, 5, 6);
  }
  if constexpr (kColumnTiles == 2) {
    _tile_loadd(7, b + kTile * kTile, kTileLine);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRowTiles == 2) {
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// The sums of a square's tiles are added to what the four of `sums` hold, or take its place; those
// that there are. Of each step the small products come first.
//   sums: the first row of each tile, rows sums_stride units apart
//   between(turn): what else is to be done, kTurns times in a step; the tile unit works meanwhile
template <int kRowTiles, int kColumnTiles, class Between>
inline void multiply_split(const SplitSquare& square, float* const (&sums)[4], int64_t sums_stride,
                           bool accumulate, const Between& between) {
  constexpr int64_t kPart = 2 * kTile * kTile;  // of the right-hand side
  const int64_t a_stride = square.a_stride * static_cast<int64_t>(sizeof(float));
  sums_stride *= static_cast<int64_t>(sizeof(float));
  const float *upper = square.a[0], *lower = square.a[1], *b = square.b;
  const auto rows = [&](int part) {
    multiply_with_rows<kRowTiles, kColumnTiles>(upper + part * kTile, lower + part * kTile,
                                                a_stride);
  };
  const auto columns = [&](int part) {
    multiply_with_columns<kRowTiles, kColumnTiles>(b + part * kPart);
  };
  start_sums<kRowTiles, kColumnTiles>(sums, sums_stride, accumulate);
  for (int64_t turn = 0; turn < kTurns * square.steps; turn += kTurns) {
    load_columns<kColumnTiles>(b);
    rows(2);  // a2 b0
    between(turn);
    rows(1);  // a1 b0
    between(turn + 1);
    columns(1);  // a1 b1
    between(turn + 2);
    rows(0);  // a0 b1
    between(turn + 3);
    columns(2);  // a0 b2
    between(turn + 4);
    columns(0);  // a0 b0
    between(turn + 5);
    upper += kParts * kTile, lower += kParts * kTile, b += kStepUnits;
  }
  store_sums<kRowTiles, kColumnTiles>(sums, sums_stride);
}

template <class Between>
inline void multiply_split(int row_tiles, int column_tiles, const SplitSquare& square,
                           float* const (&sums)[4], int64_t sums_stride, bool accumulate,
                           const Between& between) {
  const auto of_two_rows =
      column_tiles == 2 ? multiply_split<2, 2, Between> : multiply_split<2, 1, Between>;
  const auto of_one_row =
      column_tiles == 2 ? multiply_split<1, 2, Between> : multiply_split<1, 1, Between>;
  const auto run = row_tiles == 2 ? of_two_rows : of_one_row;
  run(square, sums, sums_stride, accumulate, between);
}

// A product of split rows and packed floats, as gemm() has it.
struct SplitProduct {
  int64_t rows, columns, K;
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t panel_stride;
};

// Calls run(square, j, k, pair, split_more) for all squares of 32 columns from j on and of
// `at_once` inputs from k on. It is to call split_more() at each turn of the square.
//   next: read ahead; taken apart as well if `kept` goes on to the next product
template <class Run>
inline void foreach_split_square(const SplitProduct& product, int64_t at_once,
                                 const NextPanels& next, SplitBlocks* kept, const Run& run) {
  if (product.rows == 0) {
    return;
  }
  const int64_t K = product.K, columns = product.columns;
  const int64_t per_column = (K + at_once - 1) / at_once;
  const int64_t count = (columns + kSquare - 1) / kSquare * per_column;
  const auto block_at = [&](int64_t n) {
    if (n == count) {
      return NextPanels{next.panels, next.panel_stride,
                        next.columns < kSquare ? next.columns : kSquare, next.depth};
    }
    if (n > count) {
      return NextPanels{};
    }
    const int64_t j = n / per_column * kSquare, k = n % per_column * at_once;
    return NextPanels{product.b + panel_offset(j, product.panel_stride) + k * kPanel,
                      product.panel_stride, columns - j < kSquare ? columns - j : kSquare,
                      K - k < at_once ? K - k : at_once};
  };
  SplitBlocks own{at_once < K ? at_once : K};
  SplitBlocks& blocks = kept != nullptr ? *kept : own;
  const int64_t size = split_steps(blocks.inputs) * kStepUnits;
  float* const memory = thread_scratch<Scratch::kSplit>(2 * size);
  float* const units[2] = {memory, memory + size};
  const int64_t pairs = (tiles_of(product.rows) + 1) / 2;
  use_tiles(tile_height(product.rows));
  if (!same_block(blocks.ready, block_at(0))) {
    SplitPanels first(block_at(0), block_at(1), units[blocks.current]);
    first.advance(first.rows_left());
  }
  for (int64_t n = 0; n < count; ++n) {
    const bool takes_next = n + 1 < count || kept != nullptr;
    const NextPanels after = takes_next ? block_at(n + 1) : NextPanels{};
    SplitPanels following(after, block_at(n + 2), units[1 - blocks.current]);
    const int64_t j = n / per_column * kSquare, k = n % per_column * at_once;
    const int64_t steps = split_steps(block_at(n).depth);
    const int64_t turns = kTurns * pairs * steps;
    const int64_t per_turn = (following.rows_left() + turns - 1) / turns;
    const auto split_more = [&] { following.advance(per_turn); };
    const float* const a = product.a + left_units<PackedFloat>(k);
    foreach_row_pair(product.rows, [&](const RowPair& pair) {
      const SplitSquare square{
          steps,
          {a + pair.begin[0] * product.a_stride, a + pair.begin[1] * product.a_stride},
          product.a_stride,
          units[blocks.current]};
      run(square, j, k, pair, split_more);
    });
    blocks.ready = after, blocks.current = 1 - blocks.current;
  }
}

// c (+)= the product
inline void gemm_split(const SplitProduct& product, float* c, int64_t c_stride, bool accumulate,
                       const NextPanels& next, SplitBlocks* kept) {
  foreach_split_square(product, kBlockInputs<PackedFloat>, next, kept,
                       [&](const SplitSquare& square, int64_t j, int64_t k, const RowPair& pair,
                           const auto& split_more) {
                         float* const upper = c + pair.begin[0] * c_stride + j;
                         float* const lower = c + pair.begin[1] * c_stride + j;
                         multiply_split(pair.tiles, product.columns - j <= kTile ? 1 : 2, square,
                                        {upper, upper + kTile, lower, lower + kTile}, c_stride,
                                        accumulate || k > 0,
                                        [&](int64_t /*turn*/) { split_more(); });
                       });
}

// c (+)= a b, b in parts already: see gemm_prepared().
inline void gemm_prepared_split(int64_t rows, int64_t columns, int64_t K, const float* a,
                                int64_t a_stride, const float* b, int64_t depth, float* c,
                                int64_t c_stride, bool accumulate) {
  const int64_t steps = K / left_units<PackedFloat>(kSplitGroup);
  use_tiles(tile_height(rows));
  foreach_row_pair(rows, [&](const RowPair& pair) {
    float* const upper = c + pair.begin[0] * c_stride;
    float* const lower = c + pair.begin[1] * c_stride;
    SplitSquare square{
        steps, {a + pair.begin[0] * a_stride, a + pair.begin[1] * a_stride}, a_stride, b};
    for (int64_t j = 0; j < columns; j += kSquare, square.b += kSquare * depth) {
      multiply_split(pair.tiles, columns - j <= kTile ? 1 : 2, square,
                     {upper + j, upper + j + kTile, lower + j, lower + j + kTile}, c_stride,
                     accumulate, [](int64_t /*turn*/) {});
    }
  });
}

#endif  // PVT_BODY_SPLIT_SQUARES
