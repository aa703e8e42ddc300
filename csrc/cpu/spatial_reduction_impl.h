// The pointer-level body of spatial_reduction, compiled once per CPU level (foreach_level.h).
//
// The convolution's windows do not overlap, so it is a matrix product: row (y, x) of the left-hand
// side is the window's sr_ratio^2 tokens, read where they are; the right-hand side is the weight,
// packed per token of the window. kChunkRows rows share one pass over the weights.
#ifndef PVT_BODY_SPATIAL_REDUCTION
#define PVT_BODY_SPATIAL_REDUCTION

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

// Packs four output channels:
//   packed[t][panel][u][j] <- unit u of weight[panel * kPanel + j][..][t]
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

// The first token of output row `row`'s window, in elements from the start of x.
inline int64_t window_offset(const ReduceArgs& args, int64_t row) {
  const int64_t per_image = args.out_H * args.out_W, R = args.sr_ratio;
  const int64_t b = row / per_image, y = row % per_image / args.out_W, w = row % args.out_W;
  return b * args.batch_stride + (y * R * args.W + w * R) * args.token_stride;
}

// Token t of a window, in elements from the first.
inline int64_t offset_in_window(const ReduceArgs& args, int64_t t) {
  return (t / args.sr_ratio * args.W + t % args.sr_ratio) * args.token_stride;
}

// Floats of working memory that reduce_rows() needs per thread.
inline int64_t reduce_scratch_size(int64_t C) {
  return kChunkRows * round_up(C, kPanel) + kTileRows * round_up(C, 2);
}

// Rows [begin, end) of the convolution of x: [B, H * W, C], strided as in args. Calls
// finish(first row, rows, sums, sums_stride) chunk by chunk.
template <class scalar_t, class Finish>
inline void convolve_windows(const ReduceArgs& args, const scalar_t* x, int64_t begin, int64_t end,
                             float* scratch, const Finish& finish) {
  const int64_t C = args.C, R = args.sr_ratio, panels = num_panels(C);
  const int64_t depth = right_units<scalar_t>(C), token_size = left_units<scalar_t>(C);
  const int64_t sum_stride = panels * kPanel;
  float* sums = scratch;                          // [kChunkRows, sum_stride]
  float* token = sums + kChunkRows * sum_stride;  // [kTileRows, token_size]

  for (int64_t chunk = begin; chunk < end; chunk += kChunkRows) {
    const int64_t chunk_rows = end - chunk < kChunkRows ? end - chunk : kChunkRows;
    const scalar_t* window[kChunkRows];
    for (int64_t i = 0; i < chunk_rows; ++i) {
      window[i] = x + window_offset(args, chunk + i);
    }
    // sums <- sum over the window's tokens of token * weight
    for (int64_t t = 0; t < R * R; ++t) {
      const int64_t offset = offset_in_window(args, t);
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
    add_bias(sums, sum_stride, args.bias, chunk_rows, C);
    finish(chunk, chunk_rows, sums, sum_stride);
  }
}

// Rows [begin, end) of out: [B * out_H * out_W, C], the LayerNorm of the convolution.
template <class scalar_t>
inline void reduce_rows(const ReduceArgs& args, const scalar_t* x, int64_t begin, int64_t end,
                        scalar_t* out, float* scratch) {
  convolve_windows(args, x, begin, end, scratch,
                   [&](int64_t first, int64_t rows, float* sums, int64_t sum_stride) {
                     layer_norm_rows(sums, sum_stride, rows, args.C, args.norm,
                                     out + first * args.C, args.C);
                   });
}

#endif  // PVT_BODY_SPATIAL_REDUCTION
