// fc1 and its GELU by the tile unit: while it multiplies a square (gemm_squares.h), the vector unit
// takes the GELU of the one before. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_GELU_SQUARES
#define PVT_BODY_GELU_SQUARES

#include "cpu/gelu.h"
#include "cpu/gemm_squares.h"

// out[0:columns] <- gelu(sums + bias) of a row of two tiles
inline void gelu_row(const float* sums, const Vec (&bias)[2], int64_t columns, BFloat16* out) {
  const Vec first = coarse_gelu(load(sums) + bias[0]);
  const Vec second = coarse_gelu(load(sums + kTile * kTile) + bias[1]);
  if (columns >= kSquare) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    __builtin_memcpy(out, &both, sizeof both);
    return;
  }
  store_floats(first, columns, out);
  if (columns > kTile) {
    store_floats(second, columns - kTile, out + kTile);
  }
  if (columns % 2 != 0) {
    out[columns] = BFloat16{0.f};  // the pair of the last one
  }
}

// A square of sums on their way through the GELU into units of bfloat16. Rows are counted from 0
// to rows(), those of the second tile after those of the first.
struct GeluSquare {
  alignas(64) float sums[4][kTile * kTile];
  Vec bias[2];          // of the tiles' columns
  BFloat16* hidden[2];  // the first row of each tile, at the first column
  int64_t hidden_stride, columns, height, tiles = 0;

  int64_t rows() const { return tiles * height; }

  void gelu_rows(int64_t begin, int64_t end) const {
    const Vec offsets[2] = {bias[0], bias[1]};
    for (int r = 0; r < tiles; ++r) {
      const int64_t first = begin < r * height ? 0 : begin - r * height;
      const int64_t last = end < (r + 1) * height ? end - r * height : height;
      const float* row = sums[2 * r] + first * kTile;
      BFloat16* out = hidden[r] + first * hidden_stride;
      if (columns >= kSquare) {
        for (int64_t i = first; i < last; ++i, row += kTile, out += hidden_stride) {
          gelu_row(row, offsets, kSquare, out);
        }
      } else {
        for (int64_t i = first; i < last; ++i, row += kTile, out += hidden_stride) {
          gelu_row(row, offsets, columns, out);
        }
      }
    }
  }
};

// hidden[:, 0:count] <- gelu(tokens fc1 + bias), columns [begin, begin + count) of the layer
//   tokens: [rows, C / 2] units, C a multiple of 2 * kTile   begin: a multiple of kPanel
//   hidden: units, rows hidden_stride apart, at the range's first   next: what is multiplied then
inline void gelu_squares(const LinearArgs& fc1, const float* tokens, int64_t rows, int64_t C,
                         int64_t begin, int64_t count, float* hidden, int64_t hidden_stride,
                         const NextPanels& next) {
  const int64_t steps = C / 2 / kTile, height = tile_height(rows);
  GeluSquare squares[2];
  int current = 0;
  use_tiles(height);
  for (int64_t j = 0; j < count; j += kSquare) {
    const int64_t columns = count - j < kSquare ? count - j : kSquare;
    const float* panels = fc1.weight + panel_offset(begin + j, fc1.panel_stride);
    const NextPanels following{panels + panel_offset(kSquare, fc1.panel_stride), fc1.panel_stride,
                               kSquare, C / 2};
    const ReadAhead read_ahead{j + kSquare < count ? following : next, (tiles_of(rows) + 1) / 2, 1};
    int64_t group = 0;
    foreach_row_pair(rows, [&](const RowPair& pair) {
      Tile ahead{};
      read_ahead.deal(group++, ahead);
      const Square product{steps,
                           {tokens + pair.begin[0] * C / 2, tokens + pair.begin[1] * C / 2},
                           C / 2,
                           panels,
                           fc1.panel_stride,
                           ahead.ahead,
                           ahead.ahead_step};
      const GeluSquare& previous = squares[1 - current];
      GeluSquare& square = squares[current];
      const int64_t per_step = (previous.rows() + steps - 1) / steps;
      multiply_square<BFloat16>(
          pair.tiles, columns <= kTile ? 1 : 2, product,
          {square.sums[0], square.sums[1], square.sums[2], square.sums[3]}, kTile,
          /*accumulate=*/false, [&](int64_t step) {
            const int64_t first = step * per_step, last = first + per_step;
            previous.gelu_rows(first, last < previous.rows() ? last : previous.rows());
          });
      square.bias[0] = load_floats(fc1.bias + begin + j, columns);
      square.bias[1] =
          columns > kTile ? load_floats(fc1.bias + begin + j + kTile, columns - kTile) : Vec{};
      for (int r = 0; r < pair.tiles; ++r) {
        square.hidden[r] = reinterpret_cast<BFloat16*>(hidden + pair.begin[r] * hidden_stride) + j;
      }
      square.hidden_stride = 2 * hidden_stride;
      square.columns = columns, square.height = height, square.tiles = pair.tiles;
      current = 1 - current;
    });
  }
  squares[1 - current].gelu_rows(0, squares[1 - current].rows());
}

#endif  // PVT_BODY_GELU_SQUARES
