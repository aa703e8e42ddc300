// The pointer-level body of spatial_reduction, compiled once per CPU level (foreach_level.h).
//
// The convolution's windows do not overlap, so it is a matrix product: row (y, x) of the left-hand
// side is the window's sr_ratio^2 tokens, read where they are; the right-hand side is the weight,
// packed per token of the window. kChunkRows rows share one pass over the weights.

#include "cpu/gemm.h"
#include "cpu/layer_norm.h"
#include "cpu/linear.h"

constexpr int64_t kChunkRows = 48;

inline int64_t num_panels(int64_t C) {
  return round_up(C, kPanel) / kPanel;
}

// Units of the packed weight, [sr_ratio^2][panels][units of C][kPanel].
template <class scalar_t>
inline int64_t packed_weight_size(int64_t C, int64_t sr_ratio) {
  return sr_ratio * sr_ratio * num_panels(C) * kPanel * right_units<scalar_t>(C);
}

// rows[u][t] <- the unit that holds input channels u * kPerUnit ... at position t of the window
//   filter: [C][window]   rows: [units of C][window]
template <class scalar_t>
inline void filter_to_units(const scalar_t* filter, int64_t C, int64_t window, float* rows) {
  constexpr int64_t per_unit = Operand<scalar_t>::kPerUnit;
  for (int64_t c = 0; c < C; c += per_unit) {
    Operand<scalar_t>::rows_to_right(filter + c * window, window, C - c, window,
                                     rows + c / per_unit * window);
  }
}

// Floats of working memory that pack_four_channels() needs.
inline int64_t pack_scratch_size(int64_t C, int64_t sr_ratio) {
  return 4 * C * sr_ratio * sr_ratio;
}

// Packs four output channels:  packed[t][panel][u][j] <- unit u of weight[panel * kPanel +
// j][..][t]
//   weight: [C, C, sr_ratio, sr_ratio], contiguous   scratch: see pack_scratch_size
template <class scalar_t>
inline void pack_four_channels(const scalar_t* weight, int64_t C, int64_t sr_ratio, int64_t channel,
                               float* packed, float* scratch) {
  const int64_t window = sr_ratio * sr_ratio, panels = num_panels(C);
  const int64_t depth = right_units<scalar_t>(C);
  float* rows = scratch;  // [4, depth, window]
  for (int64_t i = 0; i < 4; ++i) {
    float* row = rows + i * depth * window;
    if (channel + i < C) {
      filter_to_units(weight + (channel + i) * C * window, C, window, row);
    } else {
      __builtin_memset(row, 0, depth * window * sizeof(float));
    }
  }
  float* column = packed + channel / kPanel * depth * kPanel + channel % kPanel;
  for (int64_t u = 0; u < depth; ++u) {
    transpose_into_panel(rows + u * window, depth * window, window,
                         [=](int64_t t) { return column + (t * panels * depth + u) * kPanel; });
  }
}

// Floats of working memory that reduce_rows() needs per thread.
inline int64_t reduce_scratch_size(int64_t C) {
  return kChunkRows * round_up(C, kPanel) + kTileRows * round_up(C, 2);
}

// Rows [begin, end) of out: [B * out_H * out_W, C].   x: [B, H * W, C], strided as in args
template <class scalar_t>
inline void reduce_rows(const ReduceArgs& args, const scalar_t* x, int64_t begin, int64_t end,
                        scalar_t* out, float* scratch) {
  const int64_t C = args.C, R = args.sr_ratio, panels = num_panels(C);
  const int64_t depth = right_units<scalar_t>(C), token_size = left_units<scalar_t>(C);
  const int64_t sum_stride = panels * kPanel;
  float* sums = scratch;                          // [kChunkRows, sum_stride]
  float* token = sums + kChunkRows * sum_stride;  // [kTileRows, token_size]

  for (int64_t chunk = begin; chunk < end; chunk += kChunkRows) {
    const int64_t chunk_rows = end - chunk < kChunkRows ? end - chunk : kChunkRows;
    const scalar_t* window[kChunkRows];  // first token of each row's window
    for (int64_t i = 0; i < chunk_rows; ++i) {
      const int64_t row = chunk + i, per_image = args.out_H * args.out_W;
      const int64_t b = row / per_image, y = row % per_image / args.out_W, w = row % args.out_W;
      window[i] = x + b * args.batch_stride + (y * R * args.W + w * R) * args.token_stride;
    }
    // sums <- sum over the window's tokens of token * weight
    for (int64_t t = 0; t < R * R; ++t) {
      const int64_t offset = (t / R * args.W + t % R) * args.token_stride;
      const float* weight = args.weight + t * panels * depth * kPanel;
      for (int64_t i = 0; i < chunk_rows; i += kTileRows) {
        const int64_t rows = chunk_rows - i < kTileRows ? chunk_rows - i : kTileRows;
        for (int64_t j = 0; j < rows; ++j) {
          Operand<scalar_t>::to_left(window[i + j] + offset, C, token + j * token_size);
        }
        gemm<scalar_t>(rows, C, depth, token, token_size, weight, depth * kPanel,
                       sums + i * sum_stride, sum_stride, /*accumulate=*/t > 0);
      }
    }
    // out <- LayerNorm(sums + bias)
    add_bias(sums, sum_stride, args.bias, chunk_rows, C);
    layer_norm_rows(sums, sum_stride, chunk_rows, C, args.norm, out + chunk * C, C);
  }
}
