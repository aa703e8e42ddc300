// What the kernel bodies take at every CPU level.
#pragma once

#include <cstdint>

namespace pvt {

// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias; weight, bias: [C]
struct NormArgs {
  const float* weight;
  const float* bias;
  float eps;
};

// y = x weight^T + bias; weight: panels (gemm.h) panel_stride units apart, bias: one per column
struct LinearArgs {
  const float* weight;
  int64_t panel_stride;
  const float* bias;
};

// What a matrix product reads into the second-level cache while it runs: the panels of the one
// after it, `columns` columns of them and `depth` units of the sum. By default nothing.
struct NextPanels {
  const float* panels = nullptr;
  int64_t panel_stride = 0, columns = 0, depth = 0;
};

inline bool same_block(const NextPanels& a, const NextPanels& b) {
  return a.panels == b.panels && a.columns == b.columns && a.depth == b.depth;
}

// Weights that one product of floats in parts (split_squares.h) takes apart for the next one. They
// are in working memory of their thread, which may have no other such product in between.
struct SplitBlocks {
  int64_t inputs;         // of the products' blocks, at most
  NextPanels ready = {};  // what is taken apart,
  int current = 0;        // and in which of two places
};

// How many rows a thread takes at once (row_tiles.h): at most, and, as a rule, a multiple.
struct RowLimits {
  int64_t max_height, multiple;
};

struct ReduceArgs {
  int64_t W, C, sr_ratio, out_H, out_W;
  int64_t batch_stride, token_stride;  // of x, in elements
  const float* weight;                 // packed per token of the window, see pack_four_channels
  const float* bias;
  NormArgs norm;
};

// What spatial_reduction_backward computes on the way, one row per window.
struct ReduceGradArgs {
  ReduceArgs forward;
  int64_t num_tokens;        // H * W
  int64_t num_rows;          // B * out_H * out_W
  int64_t row_size;          // C, rounded up to panels
  int64_t column_size;       // num_rows, rounded up to four
  const float* weight_rows;  // per token of the window, panels of input channels, C deep
  float* d_conv;             // [num_rows, row_size]
  float* d_norm;             // [2, num_rows, row_size]: grad * normalised, then grad
  float* d_conv_columns;     // [C, column_size]
};

// A convolution, and the LayerNorm of its input if there is one (else weight is null).
struct PatchArgs {
  int64_t H, W, C_in;  // of the input
  int64_t out_H, out_W, C_out;
  int64_t kernel_size, stride, padding;
  int64_t batch_stride, row_stride, column_stride, channel_stride;  // of the input, in elements
  NormArgs input_norm;
  LinearArgs conv;  // packed [C_out, kernel_size * kernel_size * C_in]
  NormArgs norm;    // of the output
};

// The mean over the windows of adaptive_avg_pool2d, after a LayerNorm.
struct PoolArgs {
  int64_t H, W, C, pool_size;
  NormArgs input_norm;
};

struct MlpArgs {
  int64_t C, hidden;
  NormArgs norm;
  LinearArgs fc1, fc2;
};

// Weights [hidden, C] and [C, hidden] in panels of floats (pack.h).
struct MlpGradArgs {
  int64_t C, hidden;
  const float* fc1_columns;  // rows of fc1 as columns, C deep
  const float* fc2_rows;     // columns of fc2, C deep
  const float* fc1_rows;     // columns of fc1, `hidden` deep
  const float* fc1_bias;
};

// What `capacity` rows leave behind for the gradients of the weights.
struct MlpGradChunk {
  int64_t capacity;
  float* x;         // [C, capacity]
  float* grad;      // [C, capacity]
  float* hidden;    // after the GELU, panels of hidden columns, `capacity` deep
  float* d_before;  // gradient before the GELU, likewise
};

// Between fc1 and the GELU a 3 x 3 depthwise convolution over the token grid, zeros around it.
struct ConvMlpArgs {
  MlpArgs mlp;
  int64_t H, W;
  bool relu;          // before the convolution
  const float* taps;  // [3, 3, hidden]
  const float* conv_bias;
};

// A depthwise convolution of 3 x 3 tokens, zeros around the grid.
struct DepthwiseArgs {
  int64_t H, W, C;
  bool relu;          // before it
  const float* taps;  // [3, 3, C]
  const float* bias;  // [C]
};

// Rows [begin, end) of an image's token grid. The rows beside them are copies, since other threads
// overwrite those of the image; null outside the image.
struct Band {
  float* image;  // [H, W, C]
  int64_t begin, end;
  const float* above;
  const float* below;
};

struct AttentionArgs {
  int64_t C, num_heads, head_dim, kv_len;
  float scale;
  NormArgs norm;
  LinearArgs q, proj;
};

}  // namespace pvt
