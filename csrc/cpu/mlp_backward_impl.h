// The pointer-level body of mlp_backward, compiled once per CPU level (foreach_level.h).
//
// The hidden tensor is computed again, for a chunk of rows at a time. With h = x W1^T + b1, dO the
// gradient:
//   dG = dO W2    dH = dG o gelu'(h)    dx = dH W1
//   dW1 = dH^T x    db1 = colsum(dH)    dW2 = dO^T gelu(h)    db2 = colsum(dO)
// First every tile of rows gives dx and leaves dH and gelu(h) in panels, which are small enough to
// stay in cache; then the columns of these panels give those of dW1^T and of dW2. All products are
// of floats, whatever the dtype of the tensors.

#include "cpu/column_sum.h"
#include "cpu/convert.h"
#include "cpu/gelu.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"

constexpr int64_t kMlpGradRows = 48;
constexpr int64_t kMlpGradHidden = 64;  // hidden channels at a time: 2 x 12 KB

// dst[c][row] <- rows[row][c]   rows: [num_rows, C]; up to three rows more are read and written
inline void transpose_rows(const float* rows, int64_t num_rows, int64_t C, float* dst,
                           int64_t dst_stride) {
  for (int64_t i = 0; i < num_rows; i += 4) {
    transpose_into_panel(rows + i * C, C, C, [=](int64_t c) { return dst + c * dst_stride + i; });
  }
}

// Floats of working memory that mlp_backward_rows() needs.
inline int64_t mlp_backward_scratch_size(int64_t C) {
  return kMlpGradRows * (2 * C + 2 * kMlpGradHidden + round_up(C, kPanel));
}

// before <- the gradient before the GELU, in place of `before` and of `after`'s gradient
//   before: fc1's sums of one row and some columns   d_after: fc2's gradient of the same columns
//   hidden, d_before: null or where the row of a panel is
inline void gelu_backward_row(float* before, const float* d_after, const float* bias,
                              int64_t columns, int64_t panel_stride, float* hidden,
                              float* d_before) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    Vec slope;
    const Vec value = gelu_with_slope(load(before + c) + load_floats(bias + c, columns - c), slope);
    const Vec grad = load(d_after + c) * slope;
    store(before + c, grad);
    if (hidden != nullptr) {
      store(hidden + panel_offset(c, panel_stride), value);
      store(d_before + panel_offset(c, panel_stride), grad);
    }
  }
}

// A tile of rows, at most kMlpGradRows: their gradient, and their part of the chunk.
//   x, grad: [rows, C]   first: the tile's first row within the chunk, a multiple of 4
//   chunk: null without gradients of weights   d_x: [rows, C] or null
template <class scalar_t>
inline void mlp_backward_rows(const MlpGradArgs& args, const scalar_t* x, const scalar_t* grad,
                              int64_t rows, int64_t first, const MlpGradChunk* chunk, scalar_t* d_x,
                              float* scratch) {
  const int64_t C = args.C, out_stride = round_up(C, kPanel);
  float* x_rows = scratch;                                  // [kMlpGradRows, C]
  float* grad_rows = x_rows + kMlpGradRows * C;             // [kMlpGradRows, C]
  float* before = grad_rows + kMlpGradRows * C;             // [kMlpGradRows, kMlpGradHidden]
  float* d_after = before + kMlpGradRows * kMlpGradHidden;  // the same
  float* out = d_after + kMlpGradRows * kMlpGradHidden;     // [kMlpGradRows, out_stride]
  to_float(x, rows * C, x_rows);
  to_float(grad, rows * C, grad_rows);
  if (chunk != nullptr) {
    transpose_rows(x_rows, rows, C, chunk->x + first, chunk->capacity);
    transpose_rows(grad_rows, rows, C, chunk->grad + first, chunk->capacity);
  }
  const int64_t chunk_stride = chunk != nullptr ? chunk->capacity * kPanel : 0;
  for (int64_t h = 0; h < args.hidden; h += kMlpGradHidden) {
    const int64_t columns = args.hidden - h < kMlpGradHidden ? args.hidden - h : kMlpGradHidden;
    gemm<float>(rows, columns, C, x_rows, C, args.fc1_columns + h * C, C * kPanel, before,
                kMlpGradHidden, /*accumulate=*/false);
    gemm<float>(rows, columns, C, grad_rows, C, args.fc2_rows + h * C, C * kPanel, d_after,
                kMlpGradHidden, /*accumulate=*/false);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t place = chunk != nullptr ? h * chunk->capacity + (first + i) * kPanel : 0;
      gelu_backward_row(before + i * kMlpGradHidden, d_after + i * kMlpGradHidden,
                        args.fc1_bias + h, columns, chunk_stride,
                        chunk != nullptr ? chunk->hidden + place : nullptr,
                        chunk != nullptr ? chunk->d_before + place : nullptr);
    }
    if (d_x != nullptr) {
      gemm<float>(rows, C, columns, before, kMlpGradHidden, args.fc1_rows + h * kPanel,
                  args.hidden * kPanel, out, out_stride, /*accumulate=*/h > 0);
    }
  }
  for (int64_t i = 0; i < rows && d_x != nullptr; ++i) {
    from_float(out + i * out_stride, C, d_x + i * C);
  }
}

// What the chunk's rows add to `columns` columns from `begin` on of dW1^T, db1 and dW2.
//   d_fc1, d_fc2: [C, stride]   d_bias: [stride]   begin: a multiple of kPanel
inline void mlp_backward_columns(const MlpGradArgs& args, const MlpGradChunk& chunk, int64_t rows,
                                 int64_t begin, int64_t columns, bool accumulate, float* d_fc1,
                                 float* d_fc2, int64_t stride, float* d_bias) {
  const float* d_before = chunk.d_before + begin * chunk.capacity;
  const int64_t panel_stride = chunk.capacity * kPanel;
  gemm<float>(args.C, columns, rows, chunk.x, chunk.capacity, d_before, panel_stride, d_fc1 + begin,
              stride, accumulate);
  gemm<float>(args.C, columns, rows, chunk.grad, chunk.capacity,
              chunk.hidden + begin * chunk.capacity, panel_stride, d_fc2 + begin, stride,
              accumulate);
  for (int64_t c = 0; c < columns; c += kLanes) {
    const Vec sum = column_sum(d_before + panel_offset(c, panel_stride), kPanel, rows);
    float* out = d_bias + begin + c;
    store(out, accumulate ? load(out) + sum : sum);
  }
}

// out[c] (+)= the sum of row c   x: [C, rows], rows x_stride apart
inline void sum_rows(const float* x, int64_t x_stride, int64_t C, int64_t rows, bool accumulate,
                     float* out) {
  for (int64_t c = 0; c < C; ++c) {
    const int64_t whole = rows / kLanes * kLanes;
    Vec sum = column_sum(x + c * x_stride, kLanes, whole / kLanes);
    if (whole < rows) {
      sum += load_floats(x + c * x_stride + whole, rows - whole);
    }
    out[c] = reduce_add(sum) + (accumulate ? out[c] : 0.f);
  }
}
