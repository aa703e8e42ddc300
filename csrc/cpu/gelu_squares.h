// fc1 and its GELU by the tile unit, in bfloat16: while it multiplies a square (gemm_squares.h),
// the vector unit takes the GELU of the one before. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_GELU_SQUARES
#define PVT_BODY_GELU_SQUARES

#include "cpu/gelu.h"
#include "cpu/gemm_squares.h"

// A square of sums on their way through the GELU. Its rows are counted from 0 to rows(), those of
// the second tile after those of the first.
struct GeluSquare {
  alignas(64) float sums[4][kTile * kTile];
  Vec bias[2];       // of each tile's columns
  BFloat16* out[2];  // the first row of each tile, at the first column
  int64_t out_stride, columns, height, tiles = 0;

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
    BFloat16* dst = out[r] + first * stride;
    const float* row = sums[2 * r] + first * kTile;
    for (int64_t i = first; i < last; ++i, row += kTile, dst += stride) {
      const Vec left = coarse_gelu(load(row) + b[0]);
      const Vec right = coarse_gelu(load(row + kTile * kTile) + b[1]);
      const __m512bh both = _mm512_cvtne2ps_pbh((__m512)right, (__m512)left);
      // The pair of the last one is zero, as what fills up weights is.
      __builtin_memcpy(dst, &both, kWhole ? sizeof both : round_up(count, 2) * sizeof *dst);
    }
  }
};

// hidden[:, 0:count] <- gelu(tokens fc1 + bias), columns [begin, begin + count) of the layer
//   tokens: [rows, units], whole tiles of units   begin: a multiple of kPanel
//   hidden: units, rows hidden_stride apart, at the range's first
inline void gelu_squares(const LinearArgs& fc1, const float* tokens, int64_t rows, int64_t units,
                         int64_t begin, int64_t count, float* hidden, int64_t hidden_stride) {
  const int64_t steps = units / kTile, height = tile_height(rows);
  GeluSquare squares[2];
  int current = 0;
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
      for (int k = 0; k < 2; ++k) {
        const int64_t rest = columns - k * kTile;
        square.bias[k] = rest > 0 ? load_floats(fc1.bias + begin + j + k * kTile, rest) : Vec{};
      }
      for (int r = 0; r < pair.tiles; ++r) {
        square.out[r] = reinterpret_cast<BFloat16*>(hidden + pair.begin[r] * hidden_stride) + j;
      }
      square.out_stride = 2 * hidden_stride;
      square.columns = columns, square.height = height, square.tiles = pair.tiles;
      current = 1 - current;
    }
  });
  squares[1 - current].gelu_rows(0, squares[1 - current].rows());
}

#endif  // PVT_BODY_GELU_SQUARES
