// The pointer-level body of conv_mlp_block_, compiled once per CPU level (foreach_level.h).
//
// A band of an image, whole rows of its token grid, is worked through from top to bottom, a few
// rows in a step. One tile of hidden channels after the other goes through fc1, the depthwise
// convolution and the GELU; the last two rows of each tile wait for the next step. A block of
// kHiddenBlock channels then goes into fc2's sums. So no hidden channel leaves the caches, and none
// is computed twice but in the rows beside a band.

#include "cpu/layer_norm.h"
#include "cpu/mlp_block_impl.h"

// One grid row of one tile of channels:
//   out[w][c] <- gelu(bias[c] + sum_{i,j} rows[i][w + j - 1][c] * taps[i * 3 + j][c])
//   rows: the row above, this one and the one below, each [W, kTileColumns]
//   taps: [9], tap_stride apart   out: rows out_stride apart
template <class Element>
inline void convolve_grid_row(const float* const* rows, int64_t W, int64_t columns,
                              const float* taps, int64_t tap_stride, const float* bias,
                              Element* out, int64_t out_stride) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t count = columns - c;
    Vec tap[9];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) {
      tap[t] = load_floats(taps + t * tap_stride + c, count);
    }
    const auto emit = [&](Vec sum, int64_t w) {
      store_floats(gelu(sum), count, out + w * out_stride + c);
    };
    const Vec start = load_floats(bias + c, count);
    Vec before = start, here = start;  // sums of the tokens left of column w, and of its own
    for (int64_t w = 0; w < W; ++w) {
      Vec after = start;
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        const Vec value = load(rows[i] + w * kTileColumns + c);
        before = fmadd(value, tap[i * 3 + 2], before);
        here = fmadd(value, tap[i * 3 + 1], here);
        after = fmadd(value, tap[i * 3], after);
      }
      if (w > 0) {
        emit(before, w - 1);
      }
      before = here;
      here = after;
    }
    emit(before, W - 1);
  }
}

// sums[:, 0:columns] <- fc1 of those tokens and columns, with its bias and ReLU, before the
// convolution.   sums: [rows, kTileColumns]   begin: a multiple of kTileColumns
template <class scalar_t>
inline void hidden_before_convolution(const ConvMlpArgs& args, const float* tokens, int64_t rows,
                                      int64_t begin, int64_t columns, float* sums) {
  linear_columns<scalar_t>(args.mlp.fc1, tokens, rows, num_units<scalar_t>(args.mlp.C), begin,
                           columns, sums, kTileColumns);
  for (int64_t i = 0; args.relu && i < rows * kTileColumns; i += kLanes) {
    store(sums + i, max(Vec{}, load(sums + i)));
  }
}

// hidden <- the units of one grid row of a tile
//   rows: see convolve_grid_row   hidden: [W], hidden_stride units apart, at the tile's first
template <class scalar_t>
inline void hidden_after_convolution(const ConvMlpArgs& args, const float* const* rows,
                                     int64_t begin, int64_t columns, float* hidden,
                                     int64_t hidden_stride) {
  using Op = Operand<scalar_t>;
  using Element = typename Op::Element;
  const int64_t stride = hidden_stride * Op::kPerUnit;
  Element* out = reinterpret_cast<Element*>(hidden);
  convolve_grid_row(rows, args.W, columns, args.taps + begin, args.mlp.hidden,
                    args.conv_bias + begin, out, stride);
  for (int64_t w = 0; w < args.W && columns % Op::kPerUnit != 0; ++w) {
    out[w * stride + columns] = Element(0.f);  // the pair of the last one
  }
}

// Floats of working memory that hidden_columns_of_images() needs.
inline int64_t conv_columns_scratch_size(const ConvMlpArgs& args, int64_t images) {
  return (images * args.H + 1) * args.W * kTileColumns;
}

// hidden[:, 0:columns] <- a tile of the hidden layer of whole images, ready for fc2
//   tokens: [images * H * W, num_units(C)]   hidden: rows hidden_stride units apart
template <class scalar_t>
inline void hidden_columns_of_images(const ConvMlpArgs& args, const float* tokens, int64_t images,
                                     int64_t begin, int64_t columns, float* hidden,
                                     int64_t hidden_stride, float* scratch) {
  const int64_t row_size = args.W * kTileColumns, H = args.H;
  float* outside = scratch;  // a grid row of zeros
  float* sums = outside + row_size;
  __builtin_memset(outside, 0, row_size * sizeof(float));
  hidden_before_convolution<scalar_t>(args, tokens, images * H * args.W, begin, columns, sums);
  for (int64_t y = 0; y < images * H; ++y) {
    const float* row = sums + y * row_size;
    const float* rows[3] = {y % H == 0 ? outside : row - row_size, row,
                            y % H == H - 1 ? outside : row + row_size};
    hidden_after_convolution<scalar_t>(args, rows, begin, columns,
                                       hidden + y * args.W * hidden_stride, hidden_stride);
  }
}

// Grid rows in a step: about a hundred tokens, which make good use of each weight read.
inline int64_t rows_per_step(const ConvMlpArgs& args, int64_t rows) {
  constexpr int64_t kTokens = 112;
  const int64_t most = kTokens / args.W < 1 ? 1 : kTokens / args.W;
  const int64_t steps = (rows + most - 1) / most;
  return (rows + steps - 1) / steps;
}

// Floats of working memory that conv_mlp_band() needs for a band of `rows` grid rows.
template <class scalar_t>
inline int64_t conv_mlp_scratch_size(const ConvMlpArgs& args, int64_t rows) {
  const int64_t step = rows_per_step(args, rows), width = round_up(args.mlp.hidden, kTileColumns);
  return (step + 2) * args.W * (num_units<scalar_t>(args.mlp.C) + kTileColumns) +
         2 * args.W * width +
         step * args.W * (num_units<scalar_t>(kHiddenBlock) + round_up(args.mlp.C, kPanel));
}

// x <- x + fc2(gelu(conv(fc1(LayerNorm(x))))) for the tokens of a band
template <class scalar_t>
inline void conv_mlp_band(const ConvMlpArgs& args, const Band& band, float* scratch) {
  constexpr int64_t hidden_stride = kHiddenBlock / Operand<scalar_t>::kPerUnit;
  const MlpArgs& mlp = args.mlp;
  const int64_t C = mlp.C, W = args.W, depth = num_units<scalar_t>(C);
  const int64_t out_stride = round_up(C, kPanel), row_size = W * kTileColumns;
  const int64_t panel_stride = num_units<scalar_t>(mlp.hidden) * kPanel;
  const int64_t step = rows_per_step(args, band.end - band.begin);
  float* tokens = scratch;                         // [step + 2, W, depth]
  float* sums = tokens + (step + 2) * W * depth;   // [step + 2, W, kTileColumns]
  float* hidden = sums + (step + 2) * row_size;    // [step, W, hidden_stride]
  float* out = hidden + step * W * hidden_stride;  // [step, W, out_stride]
  float* waiting = out + step * W * out_stride;    // two grid rows of every tile

  for (int64_t y = band.begin; y < band.end; y += step) {
    const int64_t count = band.end - y < step ? band.end - y : step;
    // The rows [first, last) are new: all at first, then those that do not wait from before.
    const int64_t first = y == band.begin ? y - 1 : y + 1, last = y + count + 1;
    for (int64_t r = first; r < last; ++r) {
      const float* row = r < band.begin  ? band.above
                         : r == band.end ? band.below
                                         : band.image + r * W * C;
      if (row != nullptr) {
        layer_norm_to_units<scalar_t>(row, C, W, C, mlp.norm, tokens + (r - first) * W * depth);
      }
    }
    const bool begins_outside = first < band.begin && band.above == nullptr;
    const bool ends_outside = last > band.end && band.below == nullptr;
    const int64_t skip = begins_outside ? 1 : 0;
    const int64_t new_rows = last - first - skip - (ends_outside ? 1 : 0);
    for (int64_t h = 0; h < mlp.hidden; h += kHiddenBlock) {
      const int64_t size = mlp.hidden - h < kHiddenBlock ? mlp.hidden - h : kHiddenBlock;
      for (int64_t j = 0; j < size; j += kTileColumns) {
        const int64_t columns = size - j < kTileColumns ? size - j : kTileColumns;
        float* kept = waiting + (h + j) * 2 * W;
        float* fresh = sums;
        if (first > y) {
          __builtin_memcpy(sums, kept, 2 * row_size * sizeof(float));
          fresh += 2 * row_size;
        }
        if (begins_outside) {
          __builtin_memset(fresh, 0, row_size * sizeof(float));
        }
        if (ends_outside) {
          __builtin_memset(sums + (count + 1) * row_size, 0, row_size * sizeof(float));
        }
        hidden_before_convolution<scalar_t>(args, tokens + skip * W * depth, new_rows * W, h + j,
                                            columns, fresh + skip * row_size);
        for (int64_t i = 0; i < count; ++i) {
          const float* rows[3] = {sums + i * row_size, sums + (i + 1) * row_size,
                                  sums + (i + 2) * row_size};
          hidden_after_convolution<scalar_t>(
              args, rows, h + j, columns,
              hidden + i * W * hidden_stride + j / Operand<scalar_t>::kPerUnit, hidden_stride);
        }
        __builtin_memcpy(kept, sums + count * row_size, 2 * row_size * sizeof(float));
      }
      gemm<scalar_t>(count * W, C, num_units<scalar_t>(size), hidden, hidden_stride,
                     mlp.fc2.weight + h / Operand<scalar_t>::kPerUnit * kPanel, panel_stride, out,
                     out_stride, /*accumulate=*/h > 0);
    }
    add_residual(out, out_stride, mlp.fc2.bias, count * W, C, band.image + y * W * C, C);
  }
}
