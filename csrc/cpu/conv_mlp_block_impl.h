// The pointer-level body of conv_mlp_block_, compiled once per CPU level (foreach_level.h).
//
// A band of an image, whole rows of its token grid, is worked through from top to bottom, a few
// rows in a step. One tile of hidden channels after the other goes through fc1, the depthwise
// convolution and the GELU; the last two rows of each tile wait for the next step. A block of
// kHiddenBlock channels then goes into fc2's sums. So no hidden channel leaves the caches, and none
// is computed twice but in the rows beside a band.

#include "cpu/depthwise.h"
#include "cpu/layer_norm.h"
#include "cpu/mlp_block_impl.h"

// One grid row of one tile of channels:
//   out[w][c] <- gelu(the convolution)   out: rows out_stride apart   the rest: convolve_row
template <class scalar_t, class Element>
inline void convolve_grid_row(const float* const* rows, int64_t W, int64_t columns,
                              const float* taps, int64_t tap_stride, const float* bias,
                              Element* out, int64_t out_stride) {
  convolve_row(rows, W, columns, taps, tap_stride, bias,
               [=](Vec sum, int64_t w, int64_t c, int64_t count) {
                 store_floats(gelu_before<scalar_t>(sum), count, out + w * out_stride + c);
               });
}

// sums[:, 0:columns] <- fc1 of those tokens and columns, with its bias and ReLU, before the
// convolution.   sums: [rows, kTileColumns]   begin: a multiple of kTileColumns
//   next, kept: see gemm()
template <class scalar_t>
inline void hidden_before_convolution(const ConvMlpArgs& args, const float* tokens, int64_t rows,
                                      int64_t begin, int64_t columns, float* sums,
                                      const NextPanels& next, SplitBlocks* kept) {
  multiply_columns<scalar_t>(args.mlp.fc1, tokens, rows, args.mlp.C, begin, columns, sums,
                             kTileColumns, next, kept);
  complete<scalar_t>(args.mlp.fc1, begin, columns, rows, sums, kTileColumns);
  for (int64_t i = 0; args.relu && i < rows * kTileColumns; i += kLanes) {
    store(sums + i, max(Vec{}, load(sums + i)));
  }
}

// Rows of a block of hidden channels, at most kHiddenBlock, on their way to the units of fc2: those
// that are not written elementwise wait as floats until the block is complete.
template <class scalar_t>
struct HiddenRows {
  using Element = typename Operand<scalar_t>::Element;
  static constexpr bool kWaits = !Operand<scalar_t>::kElementwise;
  static constexpr int64_t kPerFloat = sizeof(float) / sizeof(Element);

  // Floats of working memory for `rows` rows.
  static constexpr int64_t waiting_size(int64_t rows) { return kWaits ? rows * kHiddenBlock : 0; }

  float* units;  // [rows], unit_stride apart
  int64_t unit_stride;
  float* waiting;  // [rows, kHiddenBlock] if they wait

  int64_t stride() const { return kWaits ? kHiddenBlock : unit_stride * kPerFloat; }
  Element* at(int64_t row, int64_t column) const {
    return reinterpret_cast<Element*>(kWaits ? waiting : units) + row * stride() + column;
  }
  // Columns [0, columns) are written.
  void finish(int64_t rows, int64_t columns) const {
    for (int64_t i = 0; i < rows; ++i) {
      if constexpr (kWaits) {
        Operand<scalar_t>::to_left(at(i, 0), columns, units + i * unit_stride);
      } else if (columns % Operand<scalar_t>::kPerUnit != 0) {
        *at(i, columns) = Element{0.f};  // the pair of the last one
      }
    }
  }
};

// hidden[row:row + W, column:column + columns] <- one grid row of a tile of channels from `begin`
//   rows: see convolve_grid_row
template <class scalar_t>
inline void hidden_after_convolution(const ConvMlpArgs& args, const float* const* rows,
                                     int64_t begin, int64_t columns,
                                     const HiddenRows<scalar_t>& hidden, int64_t row,
                                     int64_t column) {
  convolve_grid_row<scalar_t>(rows, args.W, columns, args.taps + begin, args.mlp.hidden,
                              args.conv_bias + begin, hidden.at(row, column), hidden.stride());
}

// Columns of hidden_columns_of_images(): whole groups of floats in parts, and so few that threads
// rarely wait for another.
template <class scalar_t>
constexpr int64_t kConvolvedColumns = kSplits<scalar_t> ? 128 : kGeluColumns<scalar_t>;

// Floats of working memory that hidden_columns_of_images() needs.
template <class scalar_t>
inline int64_t conv_columns_scratch_size(const ConvMlpArgs& args, int64_t images) {
  return (images * args.H + 1) * args.W * kTileColumns +
         HiddenRows<scalar_t>::waiting_size(images * args.H * args.W);
}

// hidden[:, 0:count] <- channels [begin, begin + count) of the hidden layer of whole images, ready
// for fc2
//   tokens: [images * H * W, row_units(C)]   hidden: rows hidden_stride units apart
//   begin: a multiple of kConvolvedColumns   count: at most that
template <class scalar_t>
inline void hidden_columns_of_images(const ConvMlpArgs& args, const float* tokens, int64_t images,
                                     int64_t begin, int64_t count, float* hidden,
                                     int64_t hidden_stride, float* scratch) {
  const int64_t W = args.W, H = args.H, row_size = W * kTileColumns;
  float* outside = scratch;          // a grid row of zeros
  float* sums = outside + row_size;  // [images * H, W, kTileColumns]
  const HiddenRows<scalar_t> out{hidden, hidden_stride, sums + images * H * row_size};
  __builtin_memset(outside, 0, row_size * sizeof(float));
  SplitBlocks blocks{args.mlp.C};
  for (int64_t j = 0; j < count; j += kTileColumns) {
    const int64_t columns = count - j < kTileColumns ? count - j : kTileColumns;
    hidden_before_convolution<scalar_t>(
        args, tokens, images * H * W, begin + j, columns, sums,
        first_panels<scalar_t>(args.mlp.fc1, args.mlp.C, begin + count, begin + j + columns, 0),
        &blocks);
    for (int64_t y = 0; y < images * H; ++y) {
      const float* row = sums + y * row_size;
      const float* rows[3] = {y % H == 0 ? outside : row - row_size, row,
                              y % H == H - 1 ? outside : row + row_size};
      hidden_after_convolution(args, rows, begin + j, columns, out, y * W, j);
    }
  }
  out.finish(images * H * W, count);
}

// Grid rows in a step: as many tokens as make good use of each weight read, see kRowLimits.
template <class scalar_t>
inline int64_t rows_per_step(const ConvMlpArgs& args, int64_t rows) {
  constexpr int64_t kTokens = kOnTiles<scalar_t> ? 208 : 112;
  const int64_t most = kTokens / args.W < 1 ? 1 : kTokens / args.W;
  const int64_t steps = (rows + most - 1) / most;
  return (rows + steps - 1) / steps;
}

// Floats of working memory that conv_mlp_band() needs for a band of `rows` grid rows.
template <class scalar_t>
inline int64_t conv_mlp_scratch_size(const ConvMlpArgs& args, int64_t rows) {
  const int64_t step = rows_per_step<scalar_t>(args, rows),
                width = round_up(args.mlp.hidden, kTileColumns);
  return (step + 2) * args.W * (row_units<scalar_t>(args.mlp.C) + kTileColumns) +
         2 * args.W * width +
         step * args.W * (row_units<scalar_t>(kHiddenBlock) + round_up(args.mlp.C, kPanel)) +
         HiddenRows<scalar_t>::waiting_size(step * args.W);
}

// x <- x + fc2(gelu(conv(fc1(LayerNorm(x))))) for the tokens of a band
template <class scalar_t>
inline void conv_mlp_band(const ConvMlpArgs& args, const Band& band, float* scratch) {
  const MlpArgs& mlp = args.mlp;
  const int64_t C = mlp.C, W = args.W, depth = row_units<scalar_t>(C);
  const int64_t hidden_stride = row_units<scalar_t>(kHiddenBlock);
  const int64_t out_stride = round_up(C, kPanel), row_size = W * kTileColumns;
  const int64_t step = rows_per_step<scalar_t>(args, band.end - band.begin);
  float* tokens = scratch;                        // [step + 2, W, depth]
  float* sums = tokens + (step + 2) * W * depth;  // [step + 2, W, kTileColumns]
  float* units = sums + (step + 2) * row_size;    // [step, W, hidden_stride]
  float* out = units + step * W * hidden_stride;  // [step, W, out_stride]
  float* waiting = out + step * W * out_stride;   // [step, W, kHiddenBlock], see HiddenRows
  float* kept_rows = waiting + HiddenRows<scalar_t>::waiting_size(step * W);  // two of every tile
  const HiddenRows<scalar_t> hidden{units, hidden_stride, waiting};
  SplitBlocks blocks{C < kHiddenBlock ? kHiddenBlock : C};

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
        float* kept = kept_rows + (h + j) * 2 * W;
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
        const NextPanels next =
            j + columns < size ? first_panels<scalar_t>(mlp.fc1, C, h + size, h + j + columns, 0)
                               : first_panels<scalar_t>(mlp.fc2, h + size, C, 0, h);
        hidden_before_convolution<scalar_t>(args, tokens + skip * W * depth, new_rows * W, h + j,
                                            columns, fresh + skip * row_size, next, &blocks);
        for (int64_t i = 0; i < count; ++i) {
          const float* rows[3] = {sums + i * row_size, sums + (i + 1) * row_size,
                                  sums + (i + 2) * row_size};
          hidden_after_convolution(args, rows, h + j, columns, hidden, i * W, j);
        }
        __builtin_memcpy(kept, sums + count * row_size, 2 * row_size * sizeof(float));
      }
      hidden.finish(count * W, size);
      const bool is_last = h + size == mlp.hidden;
      const NextPanels next =
          is_last && y + step >= band.end
              ? NextPanels{}
              : first_panels<scalar_t>(mlp.fc1, C, mlp.hidden, is_last ? 0 : h + size, 0);
      gemm<scalar_t>(count * W, C, right_units<scalar_t>(size), units, hidden_stride,
                     mlp.fc2.weight + h / Operand<scalar_t>::kPerUnit * kPanel,
                     mlp.fc2.panel_stride, out, out_stride, /*accumulate=*/h > 0, next, &blocks);
    }
    add_residual<scalar_t>(mlp.fc2, 0, C, count * W, out, out_stride, band.image + y * W * C, C);
  }
}
