// The pointer-level body of dwconv_gelu and its gradient, compiled once per CPU level
// (foreach_level.h).
//
// A tile of channels of one image at a time: it is copied to where its rows are adjacent, small
// enough for the second-level cache, and convolved there. All arithmetic is in float.

#include "cpu/column_sum.h"
#include "cpu/depthwise.h"
#include "cpu/gelu.h"

// Floats of working memory that dwconv_gelu_tile() needs.
inline int64_t dwconv_scratch_size(int64_t H, int64_t W) {
  return (H + 1) * W * kTileColumns;
}

// tile <- `columns` channels of x, ReLU applied if asked for; the rest of the tile is zero
//   x: [tokens, ...], rows x_stride apart, at the tile's first channel
//   tile: [tokens, kTileColumns]
template <class scalar_t>
inline void gather_tile(const scalar_t* x, int64_t x_stride, int64_t tokens, int64_t columns,
                        bool relu, float* tile) {
  for (int64_t i = 0; i < tokens; ++i) {
    float* row = tile + i * kTileColumns;
    to_float(x + i * x_stride, columns, row);
    for (int64_t c = columns; c < kTileColumns; ++c) {
      row[c] = 0.f;
    }
  }
  for (int64_t i = 0; relu && i < tokens * kTileColumns; i += kLanes) {
    store(tile + i, max(Vec{}, load(tile + i)));
  }
}

// `columns` channels of one image from `begin` on.   x: rows x_stride apart   out: [H * W, C]
template <class scalar_t>
inline void dwconv_gelu_tile(const DepthwiseArgs& args, const scalar_t* x, int64_t x_stride,
                             int64_t begin, int64_t columns, scalar_t* out, float* scratch) {
  const int64_t H = args.H, W = args.W, C = args.C;
  float* outside = scratch;                  // a grid row of zeros
  float* tile = outside + W * kTileColumns;  // [H, W, kTileColumns]
  __builtin_memset(outside, 0, W * kTileColumns * sizeof(float));
  gather_tile(x + begin, x_stride, H * W, columns, args.relu, tile);
  for (int64_t y = 0; y < H; ++y) {
    scalar_t* row = out + y * W * C + begin;
    convolve_row(GridRows(tile, y, H, W, outside).rows, W, columns, args.taps + begin, C,
                 args.bias + begin, [=](Vec sum, int64_t w, int64_t c, int64_t count) {
                   store_floats(gelu(sum), count, row + w * C + c);
                 });
  }
}

// Floats of working memory that dwconv_gelu_backward_tile() needs.
inline int64_t dwconv_backward_scratch_size(int64_t H, int64_t W) {
  return (2 * H + 1) * W * kTileColumns + 20 * kTileColumns;
}

// Gradients of such a tile.   grad: rows grad_stride apart   d_x: [H * W, C] or null
//   d_weights: null, or where the tile's sums over this image go, [10, weight_stride]: of the nine
//   taps, then of the bias
template <class scalar_t>
inline void dwconv_gelu_backward_tile(const DepthwiseArgs& args, const scalar_t* x,
                                      int64_t x_stride, const scalar_t* grad, int64_t grad_stride,
                                      int64_t begin, int64_t columns, scalar_t* d_x,
                                      float* d_weights, int64_t weight_stride, float* scratch) {
  const int64_t H = args.H, W = args.W, C = args.C, size = H * W * kTileColumns;
  float* outside = scratch;                  // a grid row of zeros
  float* tile = outside + W * kTileColumns;  // [H, W, kTileColumns]
  float* d_conv = tile + size;               // [H, W, kTileColumns], at first the gradient of out
  float* turned = d_conv + size;             // [9, kTileColumns]
  float* sums = turned + 9 * kTileColumns;   // [10, kTileColumns]
  float* zeros = sums + 10 * kTileColumns;   // [kTileColumns]
  __builtin_memset(outside, 0, W * kTileColumns * sizeof(float));
  __builtin_memset(sums, 0, 11 * kTileColumns * sizeof(float));
  gather_tile(x + begin, x_stride, H * W, columns, args.relu, tile);
  gather_tile(grad + begin, grad_stride, H * W, columns, /*relu=*/false, d_conv);
  for (int64_t y = 0; y < H; ++y) {
    const GridRows of_x(tile, y, H, W, outside);
    float* row = d_conv + y * W * kTileColumns;
    convolve_row(of_x.rows, W, columns, args.taps + begin, C, args.bias + begin,
                 [=](Vec sum, int64_t w, int64_t c, int64_t) {
                   Vec slope;
                   gelu_with_slope(sum, slope);
                   float* place = row + w * kTileColumns + c;
                   store(place, load(place) * slope);
                 });
    if (d_weights != nullptr) {
      convolve_row_backward(of_x.rows, row, W, columns, sums);
      for (int64_t c = 0; c < columns; c += kLanes) {
        float* bias = sums + 9 * kTileColumns + c;
        store(bias, load(bias) + column_sum(row + c, kTileColumns, W));
      }
    }
  }
  for (int64_t t = 0; t < 10 && d_weights != nullptr; ++t) {
    __builtin_memcpy(d_weights + t * weight_stride + begin, sums + t * kTileColumns,
                     columns * sizeof(float));
  }
  if (d_x == nullptr) {
    return;
  }
  for (int64_t t = 0; t < 9; ++t) {
    __builtin_memcpy(turned + t * kTileColumns, args.taps + (8 - t) * C + begin,
                     columns * sizeof(float));
  }
  for (int64_t y = 0; y < H; ++y) {
    const float* input = tile + y * W * kTileColumns;
    scalar_t* row = d_x + y * W * C + begin;
    convolve_row(GridRows(d_conv, y, H, W, outside).rows, W, columns, turned, kTileColumns, zeros,
                 [=](Vec sum, int64_t w, int64_t c, int64_t count) {
                   const Vec value = load(input + w * kTileColumns + c);
                   store_floats(args.relu ? (value <= Vec{} ? Vec{} : sum) : sum, count,
                                row + w * C + c);
                 });
  }
}

// out[0:count] <- the sum over images of rows, image_stride apart, in order
inline void add_images(const float* rows, int64_t images, int64_t image_stride, int64_t count,
                       float* out) {
  for (int64_t c = 0; c < count; c += kLanes) {
    const int64_t lanes = count - c;
    Vec sum{};
    for (int64_t b = 0; b < images; ++b) {
      sum += load_floats(rows + b * image_stride + c, lanes);
    }
    store_floats(sum, lanes, out + c);
  }
}
