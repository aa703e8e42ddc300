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
#if PVT_LEVEL == PVT_LEVEL_AMX
#include "cpu/gelu_squares.h"
#endif

constexpr int64_t kHiddenBlock = kSumBlock;

// Rows of sums that wait for their GELU: 6 KB, or 24 to 32 of integers. Or 27 KB of a whole tile of
// tokens, where right-hand units are taken apart.
template <class scalar_t>
constexpr int64_t kGeluRows = Operand<scalar_t>::kUnpacks ? 108 : kFewRows;

// Columns of a row of sums: a tile, or all that have one scale, or as many as make the most of a
// product in parts.
template <class scalar_t>
constexpr int64_t kGeluColumns = Operand<scalar_t>::kElementwise ? kTileColumns : kHiddenBlock;

// Floats of working memory that hidden_columns() needs.
template <class scalar_t>
constexpr int64_t kHiddenScratchSize = kGeluRows<scalar_t> * kGeluColumns<scalar_t>;

// units <- gelu(what fc1 gives for the sums of columns [begin, begin + columns)), row by row
//   sums: [rows, kGeluColumns]   units: rows units_stride apart
template <class scalar_t>
inline void gelu_to_units(const LinearArgs& fc1, int64_t begin, int64_t columns, int64_t rows,
                          float* sums, float* units, int64_t units_stride) {
  using Op = Operand<scalar_t>;
  using Element = typename Op::Element;
  constexpr int64_t width = kGeluColumns<scalar_t>;
  IntVec largest[kGeluRows<scalar_t>];
  for (int64_t r = 0; r < rows; ++r) {
    Element* out = reinterpret_cast<Element*>(units + r * units_stride);
    float* row = sums + r * width;
    IntVec largest_of_row{};
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t count = columns - c;
      const Vec value =
          gelu_before<scalar_t>(completed<scalar_t>(load(row + c), fc1, begin + c, count));
      if constexpr (Op::kHeader > 0) {
        store(row + c, value);
        largest_of_row = Op::larger(largest_of_row, value);
      } else {
        store_floats(value, count, out + c);
      }
    }
    if constexpr (Op::kHeader > 0) {
      largest[r] = largest_of_row;
    } else if (columns % Op::kPerUnit != 0) {
      out[columns] = Element{0.f};  // the pair of the last one
    }
  }
  if constexpr (Op::kHeader > 0) {
    // Afterwards, so that no row waits for the largest value of the one before.
    for (int64_t r = 0; r < rows; ++r) {
      Op::block_to_left(sums + r * width, columns, largest[r], units + r * units_stride);
    }
  }
}

// hidden[:, 0:count] <- gelu(tokens fc1 + bias), columns [begin, begin + count) of the hidden layer
//   tokens: [rows, row_units(C)]   hidden: units, rows hidden_stride apart, at the range's first
//   begin: a multiple of kGeluColumns   next: what is multiplied after them
template <class scalar_t>
inline void hidden_columns(const MlpArgs& args, const float* tokens, int64_t rows, int64_t begin,
                           int64_t count, float* hidden, int64_t hidden_stride, float* sums,
                           const NextPanels& next, [[maybe_unused]] SplitBlocks* kept) {
  constexpr int64_t width = kGeluColumns<scalar_t>, max_height = kGeluRows<scalar_t>;
  const int64_t stride = row_units<scalar_t>(args.C);
#if PVT_LEVEL == PVT_LEVEL_AMX
  if constexpr (std::is_same_v<scalar_t, BFloat16>) {
    if (stride % kTile == 0) {
      return gelu_squares(args.fc1, tokens, rows, stride, begin, count, hidden, hidden_stride);
    }
  }
  if constexpr (kSplits<scalar_t>) {
    return gelu_split(args.fc1, tokens, rows, args.C, begin, count, hidden, hidden_stride, next,
                      kept);
  }
#endif
  for (int64_t j = 0; j < count; j += width) {
    const int64_t columns = count - j < width ? count - j : width;
    const NextPanels following =
        j + width < count
            ? first_panels<scalar_t>(args.fc1, args.C, args.hidden, begin + j + width, 0)
            : next;
    for (int64_t i = 0; i < rows; i += max_height) {
      const int64_t height = rows - i < max_height ? rows - i : max_height;
      multiply_columns<scalar_t>(args.fc1, tokens + i * stride, height, args.C, begin + j, columns,
                                 sums, width, i == 0 ? following : NextPanels{});
      gelu_to_units<scalar_t>(args.fc1, begin + j, columns, height, sums,
                              hidden + i * hidden_stride + row_units<scalar_t>(j), hidden_stride);
    }
  }
}

// Floats of working memory that fc2_sums() needs.
template <class scalar_t>
inline int64_t fc2_scratch_size(int64_t rows) {
  return rows * row_units<scalar_t>(kHiddenBlock) + kHiddenScratchSize<scalar_t>;
}

// out <- what fc2 sums up, fc2(gelu(fc1(tokens))) before its bias
//   tokens: [rows, row_units(C)]   out: [rows, round_up(C, kPanel)]
template <class scalar_t>
inline void fc2_sums(const MlpArgs& args, const float* tokens, int64_t rows, float* out,
                     float* scratch) {
  const int64_t hidden_stride = row_units<scalar_t>(kHiddenBlock);
  const int64_t C = args.C;
  float* sums = scratch;                                // [kGeluRows, kGeluColumns]
  float* hidden = sums + kHiddenScratchSize<scalar_t>;  // [rows, hidden_stride]
  SplitBlocks blocks{C < kHiddenBlock ? kHiddenBlock : C};
  for (int64_t h = 0; h < args.hidden; h += kHiddenBlock) {
    const int64_t count = args.hidden - h < kHiddenBlock ? args.hidden - h : kHiddenBlock;
    hidden_columns<scalar_t>(args, tokens, rows, h, count, hidden, hidden_stride, sums,
                             first_panels<scalar_t>(args.fc2, h + count, C, 0, h), &blocks);
    const NextPanels next = first_panels<scalar_t>(args.fc1, C, args.hidden, h + kHiddenBlock, 0);
    gemm<scalar_t>(rows, C, right_units<scalar_t>(count), hidden, hidden_stride,
                   args.fc2.weight + h / Operand<scalar_t>::kPerUnit * kPanel,
                   args.fc2.panel_stride, out, round_up(C, kPanel), /*accumulate=*/h > 0, next,
                   &blocks);
  }
}

// Floats of working memory that mlp_rows() needs.
template <class scalar_t>
inline int64_t mlp_scratch_size(int64_t rows, int64_t C) {
  return rows * (row_units<scalar_t>(C) + round_up(C, kPanel)) + fc2_scratch_size<scalar_t>(rows);
}

// x <- x + fc2(gelu(fc1(LayerNorm(x))))   x: [rows, C]
template <class scalar_t>
inline void mlp_rows(const MlpArgs& args, float* x, int64_t rows, float* scratch) {
  const int64_t C = args.C, out_stride = round_up(C, kPanel);
  float* out = scratch + fc2_scratch_size<scalar_t>(rows);  // [rows, out_stride]
  float* tokens = out + rows * out_stride;                  // [rows, row_units(C)]
  layer_norm_to_units<scalar_t>(x, C, rows, C, args.norm, tokens);
  fc2_sums<scalar_t>(args, tokens, rows, out, scratch);
  add_residual<scalar_t>(args.fc2, 0, C, rows, out, out_stride, x, C);
}

#endif  // PVT_BODY_MLP_BLOCK
