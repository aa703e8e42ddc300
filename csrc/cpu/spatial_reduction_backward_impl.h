// The pointer-level body of spatial_reduction_backward, compiled once per CPU level
// (foreach_level.h).
//
// The convolution is computed again. With c its rows, z = (c - mean) * scale, dO the gradient:
//   dz = dO o norm_weight    dc = scale * (dz - mean(dz) - z mean(dz o z))
//   d_norm_weight = colsum(dO o z)    d_norm_bias = colsum(dO)    d_bias = colsum(dc)
// and for token t of each window, x_t its row, W_t [C, C] its part of the weight:
//   dx_t = dc W_t    dW_t = dc^T x_t
// The gradients' products are of floats, whatever the dtype of the tensors.

#include "cpu/column_sum.h"
#include "cpu/pack.h"
#include "cpu/spatial_reduction_impl.h"

// Floats of working memory that pack_filter_rows() needs.
inline int64_t filter_scratch_size(int64_t C, int64_t sr_ratio) {
  return round_up(C, kPanel) * sr_ratio * sr_ratio;
}

// Packs output channel `channel` of all W_t:  packed[t][panel][channel][j] <-
// weight[channel][panel * kPanel + j][t]
//   weight: [C, C, sr_ratio, sr_ratio], contiguous
template <class scalar_t>
inline void pack_filter_rows(const scalar_t* weight, int64_t C, int64_t sr_ratio, int64_t channel,
                             float* packed, float* scratch) {
  const int64_t window = sr_ratio * sr_ratio, row_size = round_up(C, kPanel);
  float* filter = scratch;  // [row_size, window]
  to_float(weight + channel * C * window, C * window, filter);
  __builtin_memset(filter + C * window, 0, (row_size - C) * window * sizeof(float));
  for (int64_t c = 0; c < row_size; c += 4) {
    float* dst = packed + panel_offset(c, C * kPanel) + channel * kPanel;
    transpose_into_panel(filter + c * window, window, window,
                         [=](int64_t t) { return dst + t * C * row_size; });
  }
}

// One row: d_conv <- dc, d_norm <- dO o z, from c, dO and the norm's weight.
//   conv, grad, d_conv, d_norm: [C], of which whole vectors may be written
inline void layer_norm_backward_row(const float* conv, const float* grad, int64_t C,
                                    const NormArgs& norm, float* d_conv, float* d_norm) {
  const float size = static_cast<float>(C);
  Vec sum{};
  for (int64_t c = 0; c < C; c += kLanes) {
    sum += load_floats(conv + c, C - c);
  }
  const Vec mean = broadcast(reduce_add(sum) / size);
  sum = Vec{};
  for (int64_t c = 0; c < C; c += kLanes) {
    const Vec centred = first_lanes(load_floats(conv + c, C - c) - mean, C - c, 0.f);
    store(d_conv + c, centred);
    sum = fmadd(centred, centred, sum);
  }
  const Vec scale = broadcast(1.f / std::sqrt(reduce_add(sum) / size + norm.eps));
  Vec d_sum{}, along_sum{};
  for (int64_t c = 0; c < C; c += kLanes) {
    const Vec normal = load(d_conv + c) * scale, d_out = load_floats(grad + c, C - c);
    const Vec d_normal = d_out * load_floats(norm.weight + c, C - c);
    store(d_conv + c, normal);
    store(d_norm + c, d_out * normal);
    d_sum += d_normal;
    along_sum = fmadd(d_normal, normal, along_sum);
  }
  const Vec d_mean = broadcast(reduce_add(d_sum) / size);
  const Vec along = broadcast(reduce_add(along_sum) / size);
  for (int64_t c = 0; c < C; c += kLanes) {
    const Vec d_normal = load_floats(grad + c, C - c) * load_floats(norm.weight + c, C - c);
    store(d_conv + c, scale * (d_normal - d_mean - load(d_conv + c) * along));
  }
}

// d_conv and d_norm of rows [begin, end).   grad: [num_rows, C]   scratch: as reduce_rows() needs
template <class scalar_t>
inline void reduce_rows_backward(const ReduceGradArgs& args, const scalar_t* x,
                                 const scalar_t* grad, int64_t begin, int64_t end, float* scratch) {
  const int64_t C = args.forward.C, size = args.row_size;
  convolve_windows(args.forward, x, begin, end, scratch,
                   [&](int64_t first, int64_t rows, const float* sums, int64_t sum_stride) {
                     for (int64_t i = 0; i < rows; ++i) {
                       const int64_t row = first + i;
                       float* weight_row = args.d_norm + row * size;
                       float* bias_row = weight_row + args.num_rows * size;
                       to_float(grad + row * C, C, bias_row);
                       layer_norm_backward_row(sums + i * sum_stride, bias_row, C,
                                               args.forward.norm, args.d_conv + row * size,
                                               weight_row);
                     }
                   });
}

// d_conv_columns of rows [row, row + 4), those that there are.
inline void transpose_d_conv(const ReduceGradArgs& args, int64_t row) {
  transpose_into_panel(args.d_conv + row * args.row_size, args.row_size, args.forward.C,
                       [&](int64_t c) { return args.d_conv_columns + c * args.column_size + row; });
}

// out[0:kPanel] <- the sums of kPanel columns   x: rows x_stride apart, at the first of them
inline void sum_columns(const float* x, int64_t x_stride, int64_t rows, float* out) {
  for (int64_t c = 0; c < kPanel; c += kLanes) {
    store(out + c, column_sum(x + c, x_stride, rows));
  }
}

constexpr int64_t kWeightColumns = 64;  // of a weight's gradient, computed in one go

// Columns [column, column + kWeightColumns), those that there are, of dW_t: [C, row_size].
//   panels: scratch, num_rows * kWeightColumns
template <class scalar_t>
inline void reduce_weight_backward(const ReduceGradArgs& args, const scalar_t* x, int64_t t,
                                   int64_t column, float* d_weight, float* panels) {
  const int64_t C = args.forward.C, panel_stride = args.num_rows * kPanel;
  const int64_t columns = C - column < kWeightColumns ? C - column : kWeightColumns;
  const scalar_t* token = x + offset_in_window(args.forward, t) + column;
  for (int64_t row = 0; row < args.num_rows; ++row) {
    pack_rows<float>(token + window_offset(args.forward, row), 1, columns, 0, panels + row * kPanel,
                     panel_stride);
  }
  gemm<float>(C, columns, args.num_rows, args.d_conv_columns, args.column_size, panels,
              panel_stride, d_weight + t * C * args.row_size + column, args.row_size,
              /*accumulate=*/false);
}

// Floats of working memory that reduce_x_backward() needs.
inline int64_t reduce_x_scratch_size(int64_t C) {
  return kChunkRows * round_up(C, kPanel);
}

// dx of the windows of rows [begin, end), at most kChunkRows.   d_x: [B, H * W, C], contiguous
template <class scalar_t>
inline void reduce_x_backward(const ReduceGradArgs& args, int64_t begin, int64_t end, scalar_t* d_x,
                              float* scratch) {
  const int64_t C = args.forward.C, size = args.row_size, R = args.forward.sr_ratio;
  ReduceArgs target = args.forward;
  target.token_stride = C;
  target.batch_stride = args.num_tokens * C;
  for (int64_t t = 0; t < R * R; ++t) {
    gemm<float>(end - begin, C, C, args.d_conv + begin * size, size,
                args.weight_rows + t * C * size, C * kPanel, scratch, size, /*accumulate=*/false);
    for (int64_t row = begin; row < end; ++row) {
      from_float(scratch + (row - begin) * size, C,
                 d_x + window_offset(target, row) + offset_in_window(target, t));
    }
  }
}
