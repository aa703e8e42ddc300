// The pointer-level body of mlp_block_, compiled once per CPU level (foreach_level.h).
//
// A block of kHiddenBlock hidden channels goes from fc1 through the GELU into fc2's sums before the
// next one is begun, so the hidden tensor never leaves the second-level cache.

#ifndef PVT_BODY_MLP_BLOCK
#define PVT_BODY_MLP_BLOCK

#include "cpu/gelu.h"
#include "cpu/gemm.h"
#include "cpu/layer_norm.h"
#include "cpu/linear.h"

constexpr int64_t kHiddenBlock = kSumBlock;
constexpr int64_t kGeluRows = 24;  // rows of sums that wait for their GELU: 6 KB

// Floats of working memory that hidden_columns() needs.
constexpr int64_t kHiddenScratchSize = kGeluRows * kTileColumns;

// hidden[:, 0:count] <- gelu(tokens fc1 + bias), columns [begin, begin + count) of the hidden layer
//   tokens: [rows, num_units(C)]   hidden: units, rows hidden_stride apart, at the range's first
//   begin: a multiple of kTileColumns
template <class scalar_t>
inline void hidden_columns(const MlpArgs& args, const float* tokens, int64_t rows, int64_t begin,
                           int64_t count, float* hidden, int64_t hidden_stride, float* sums) {
  using Op = Operand<scalar_t>;
  const int64_t depth = num_units<scalar_t>(args.C);
  for (int64_t j = 0; j < count; j += kTileColumns) {
    const int64_t columns = count - j < kTileColumns ? count - j : kTileColumns;
    const float* fc1 = args.fc1.weight + panel_offset(begin + j, depth * kPanel);
    const float* bias = args.fc1.bias + begin + j;
    for (int64_t i = 0; i < rows; i += kGeluRows) {
      const int64_t height = rows - i < kGeluRows ? rows - i : kGeluRows;
      gemm<scalar_t>(height, columns, depth, tokens + i * depth, depth, fc1, depth * kPanel, sums,
                     kTileColumns, /*accumulate=*/false);
      for (int64_t r = 0; r < height; ++r) {
        float* row = sums + r * kTileColumns;
        for (int64_t c = 0; c < columns; c += kLanes) {
          store(row + c, gelu(load(row + c) + load_floats(bias + c, columns - c)));
        }
        Op::to_units(row, columns, hidden + (i + r) * hidden_stride + j / Op::kPerUnit);
      }
    }
  }
}

// Floats of working memory that mlp_rows() needs.
template <class scalar_t>
inline int64_t mlp_scratch_size(int64_t rows, int64_t C) {
  return rows * (num_units<scalar_t>(C) + round_up(C, kPanel) + num_units<scalar_t>(kHiddenBlock)) +
         kHiddenScratchSize;
}

// x <- x + fc2(gelu(fc1(LayerNorm(x))))   x: [rows, C]
template <class scalar_t>
inline void mlp_rows(const MlpArgs& args, float* x, int64_t rows, float* scratch) {
  constexpr int64_t hidden_stride = kHiddenBlock / Operand<scalar_t>::kPerUnit;
  const int64_t C = args.C, out_stride = round_up(C, kPanel);
  const int64_t panel_stride = num_units<scalar_t>(args.hidden) * kPanel;
  float* sums = scratch;                          // [kGeluRows, kTileColumns]
  float* out = sums + kHiddenScratchSize;         // [rows, out_stride]
  float* hidden = out + rows * out_stride;        // [rows, hidden_stride]
  float* tokens = hidden + rows * hidden_stride;  // [rows, num_units(C)]
  layer_norm_to_units<scalar_t>(x, C, rows, C, args.norm, tokens);
  for (int64_t h = 0; h < args.hidden; h += kHiddenBlock) {
    const int64_t count = args.hidden - h < kHiddenBlock ? args.hidden - h : kHiddenBlock;
    hidden_columns<scalar_t>(args, tokens, rows, h, count, hidden, hidden_stride, sums);
    gemm<scalar_t>(rows, C, num_units<scalar_t>(count), hidden, hidden_stride,
                   args.fc2.weight + h / Operand<scalar_t>::kPerUnit * kPanel, panel_stride, out,
                   out_stride, /*accumulate=*/h > 0);
  }
  add_residual(out, out_stride, args.fc2.bias, rows, C, x, C);
}

#endif  // PVT_BODY_MLP_BLOCK
