// fc1 and its GELU by the tile unit, in bfloat16 or its parts of float32: while it multiplies a
// square (gemm_squares.h, split_squares.h), the vector unit takes the GELU of the one before. Part
// of a kernel body (foreach_level.h).
#ifndef PVT_BODY_GELU_SQUARES
#define PVT_BODY_GELU_SQUARES

#include "cpu/gelu.h"
#include "cpu/gemm_squares.h"
#include "cpu/split_squares.h"

// A square of sums on their way through the GELU. Its rows are counted from 0 to rows(), those of
// the second tile after those of the first.
template <class scalar_t>
struct GeluSquare {
  alignas(64) float sums[4][kTile * kTile];
  Vec bias[2];    // of each tile's columns
  float* out[2];  // the first row of each tile, at the first column
  int64_t out_stride, columns, height, tiles = 0;

  // After its sums are there.
  //   units: of all rows and columns, rows stride apart   begin: its first column of the layer
  void expect(const LinearArgs& fc1, int64_t begin, int64_t count, const RowPair& pair,
              int64_t tile_rows, float* units, int64_t stride) {
    for (int k = 0; k < 2; ++k) {
      const int64_t rest = count - k * kTile;
      bias[k] = rest > 0 ? load_floats(fc1.bias + begin + k * kTile, rest) : Vec{};
      out[k] = units + pair.begin[k] * stride;
    }
    out_stride = stride, columns = count, height = tile_rows, tiles = pair.tiles;
  }

  int64_t rows() const { return tiles * height; }

  void gelu_rows(int64_t begin, int64_t end) const {
    for (int r = 0; r < tiles; ++r) {
      const int64_t first = begin < r * height ? 0 : begin - r * height;
      const int64_t last = end < (r + 1) * height ? end - r * height : height;
      if (columns >= kSquare) {
        gelu_rows_of_tile</*kWhole=*/true>(r, first, last);
      } else {
        gelu_rows_of_tile</*kWhole=*/false>(r, first, last);
      }
    }
  }

  template <bool kWhole>
  void gelu_rows_of_tile(int r, int64_t first, int64_t last) const {
    // Copies, since every store could change a member.
    const Vec b[2] = {bias[0], bias[1]};
    const int64_t stride = out_stride, count = columns;
    float* dst = out[r] + first * stride;
    const float* row = sums[2 * r] + first * kTile;
    for (int64_t i = first; i < last; ++i, row += kTile, dst += stride) {
      const Vec left = gelu_before<scalar_t>(load(row) + b[0]);
      // The second tile may not be there.
      const Vec right =
          kWhole || count > kTile ? gelu_before<scalar_t>(load(row + kTile * kTile) + b[1]) : Vec{};
      if constexpr (kSplits<scalar_t>) {
        Operand<scalar_t>::group_to_left(left, right, dst);
      } else {
        const __m512bh both = _mm512_cvtne2ps_pbh((__m512)right, (__m512)left);
        // The pair of the last one is zero, as what fills up weights is.
        __builtin_memcpy(dst, &both, kWhole ? sizeof both : round_up(count, 2) * sizeof(scalar_t));
      }
    }
  }
};

// Two squares that alternate: while one is multiplied, the GELU of the other is taken.
template <class scalar_t>
class GeluPair {
 public:
  // turns: times that work() is called for a square
  explicit GeluPair(int64_t turns) : turns_(turns) {}

  GeluSquare<scalar_t>& current() { return squares_[current_]; }
  // The part of the other square that falls to a turn of the current one.
  void work(int64_t turn) const {
    const GeluSquare<scalar_t>& previous = squares_[1 - current_];
    const int64_t per_turn = (previous.rows() + turns_ - 1) / turns_;
    const int64_t first = turn * per_turn, last = first + per_turn;
    previous.gelu_rows(first, last < previous.rows() ? last : previous.rows());
  }
  // The current square's sums are there.
  void next() { current_ = 1 - current_; }
  void finish() {
    const GeluSquare<scalar_t>& last = squares_[1 - current_];
    last.gelu_rows(0, last.rows());
  }

 private:
  GeluSquare<scalar_t> squares_[2];
  int64_t turns_;
  int current_ = 0;
};

// hidden[:, 0:count] <- gelu(tokens fc1 + bias), columns [begin, begin + count) of the layer
//   tokens: [rows, units], whole tiles of units   begin: a multiple of kPanel
//   hidden: units, rows hidden_stride apart, at the range's first
inline void gelu_squares(const LinearArgs& fc1, const float* tokens, int64_t rows, int64_t units,
                         int64_t begin, int64_t count, float* hidden, int64_t hidden_stride) {
  const int64_t steps = units / kTile, height = tile_height(rows);
  GeluPair<BFloat16> squares(steps);
  use_tiles(height);
  foreach_row_pair(rows, [&](const RowPair& pair) {
    for (int64_t j = 0; j < count; j += kSquare) {
      const int64_t columns = count - j < kSquare ? count - j : kSquare;
      const Square product{steps,
                           {tokens + pair.begin[0] * units, tokens + pair.begin[1] * units},
                           units,
                           fc1.weight + panel_offset(begin + j, fc1.panel_stride),
                           fc1.panel_stride,
                           nullptr,
                           0};
      GeluSquare<BFloat16>& square = squares.current();
      multiply_square<BFloat16>(pair.tiles, columns <= kTile ? 1 : 2, product,
                                {square.sums[0], square.sums[1], square.sums[2], square.sums[3]},
                                kTile,
                                /*accumulate=*/false, [&](int64_t step) { squares.work(step); });
      square.expect(fc1, begin + j, columns, pair, height, hidden + row_units<BFloat16>(j),
                    hidden_stride);
      squares.next();
    }
  });
  squares.finish();
}

// The same of parts.   C: inputs   next, kept: see foreach_split_square
inline void gelu_split(const LinearArgs& fc1, const float* tokens, int64_t rows, int64_t C,
                       int64_t begin, int64_t count, float* hidden, int64_t hidden_stride,
                       const NextPanels& next, SplitBlocks* kept) {
  const SplitProduct product{rows,
                             count,
                             C,
                             tokens,
                             row_units<PackedFloat>(C),
                             fc1.weight + panel_offset(begin, fc1.panel_stride),
                             fc1.panel_stride};
  GeluPair<PackedFloat> squares(kTurns * split_steps(C));
  foreach_split_square(
      product, /*at_once=*/C, next, kept,
      [&](const SplitSquare& factors, int64_t j, int64_t /*k*/, const RowPair& pair,
          const auto& split_more) {
        const int64_t columns = count - j < kSquare ? count - j : kSquare;
        GeluSquare<PackedFloat>& square = squares.current();
        multiply_split(pair.tiles, columns <= kTile ? 1 : 2, factors,
                       {square.sums[0], square.sums[1], square.sums[2], square.sums[3]}, kTile,
                       /*accumulate=*/false, [&](int64_t turn) {
                         squares.work(turn);
                         split_more();
                       });
        square.expect(fc1, begin + j, columns, pair, tile_height(rows),
                      hidden + row_units<PackedFloat>(j), hidden_stride);
        squares.next();
      });
  squares.finish();
}

#endif  // PVT_BODY_GELU_SQUARES
