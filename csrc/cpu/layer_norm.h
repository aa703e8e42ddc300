// LayerNorm of rows, four at a time. Part of a kernel body (foreach_level.h).
//
// One row is a chain of reductions, a square root and a division, each waiting for the one before;
// four rows side by side take hardly longer than one.
#ifndef PVT_BODY_LAYER_NORM
#define PVT_BODY_LAYER_NORM

#include "cpu/gemm.h"

constexpr int kNormRows = 4;

// store(i, c, y[i][c:c + count], count) for all of
//   y[i] = (x[i] - mean(x[i])) / sqrt(var(x[i]) + eps) * weight + bias,   four rows of C elements
// Those of all rows at some c are read before the first is stored: rows may be equal, and y may be
// x. The last row's is stored last.
template <class Store>
inline void layer_norm_four_with(const float* const* x, int64_t C, const NormArgs& norm,
                                 const Store& store) {
  const int64_t whole = C / kLanes * kLanes, rest = C - whole;
  const float size = static_cast<float>(C);
  Vec partial[kNormRows] = {};
  for (int64_t c = 0; c < whole; c += kLanes) {
    for (int i = 0; i < kNormRows; ++i) {
      partial[i] += load(x[i] + c);
    }
  }
  if (rest > 0) {
    for (int i = 0; i < kNormRows; ++i) {
      partial[i] += load_floats(x[i] + whole, rest);
    }
  }
  const Quad mean = reduce_add_four(partial) / size;
  for (int i = 0; i < kNormRows; ++i) {
    partial[i] = Vec{};
  }
  for (int64_t c = 0; c < whole; c += kLanes) {
    for (int i = 0; i < kNormRows; ++i) {
      const Vec centred = load(x[i] + c) - mean[i];
      partial[i] = fmadd(centred, centred, partial[i]);
    }
  }
  if (rest > 0) {
    for (int i = 0; i < kNormRows; ++i) {
      const Vec centred = first_lanes(load_floats(x[i] + whole, rest) - mean[i], rest, 0.f);
      partial[i] = fmadd(centred, centred, partial[i]);
    }
  }
  const Quad variance = reduce_add_four(partial) / size;
  Quad scale;
  for (int i = 0; i < kNormRows; ++i) {
    scale[i] = 1.f / std::sqrt(variance[i] + norm.eps);
  }
  Vec values[kNormRows];
  for (int64_t c = 0; c < whole; c += kLanes) {
    const Vec weight = load(norm.weight + c), bias = load(norm.bias + c);
    for (int i = 0; i < kNormRows; ++i) {
      values[i] = fmadd((load(x[i] + c) - mean[i]) * scale[i], weight, bias);
    }
    for (int i = 0; i < kNormRows; ++i) {
      store(i, c, values[i], int64_t{kLanes});
    }
  }
  if (rest > 0) {
    const Vec weight = load_floats(norm.weight + whole, rest);
    const Vec bias = load_floats(norm.bias + whole, rest);
    for (int i = 0; i < kNormRows; ++i) {
      values[i] = fmadd((load_floats(x[i] + whole, rest) - mean[i]) * scale[i], weight, bias);
    }
    for (int i = 0; i < kNormRows; ++i) {
      store(i, whole, values[i], rest);
    }
  }
}

// The same into four rows y[i].
template <class Out>
inline void layer_norm_four(const float* const* x, int64_t C, const NormArgs& norm, Out* const* y) {
  layer_norm_four_with(x, C, norm, [=](int64_t i, int64_t c, Vec value, int64_t count) {
    store_floats(value, count, y[i] + c);
  });
}

// The same into four rows of row_units(C), block by block: of what is not written elementwise.
template <class scalar_t>
inline void layer_norm_four_blocks(const float* const* x, int64_t C, const NormArgs& norm,
                                   float* const* units) {
  using Op = Operand<scalar_t>;
  constexpr bool kQuantises = Op::kHeader > 0;
  float block[kNormRows][kSumBlock];
  IntVec largest[kNormRows] = {};
  layer_norm_four_with(x, C, norm, [&](int64_t i, int64_t c, Vec value, int64_t count) {
    store(block[i] + c % kSumBlock, value);
    if constexpr (kQuantises) {
      largest[i] = Op::larger(largest[i], value);
    }
    const int64_t end = c + count, first = c / kSumBlock * kSumBlock;
    if (i == kNormRows - 1 && (end == first + kSumBlock || end == C)) {
      for (int64_t j = 0; j < kNormRows; ++j) {
        float* to = units[j] + row_units<scalar_t>(first);
        if constexpr (kQuantises) {
          Op::block_to_left(block[j], end - first, largest[j], to);
          largest[j] = IntVec{};
        } else {
          Op::to_left(block[j], end - first, to);
        }
      }
    }
  });
}

// Calls run(four rows of x, the same of y); the last four may have the last row more than once.
template <class Out, class Run>
inline void foreach_four_rows(const float* x, int64_t x_stride, int64_t rows, Out* y,
                              int64_t y_stride, const Run& run) {
  for (int64_t i = 0; i < rows; i += kNormRows) {
    const float* from[kNormRows];
    Out* to[kNormRows];
    for (int64_t j = 0; j < kNormRows; ++j) {
      const int64_t row = i + j < rows ? i + j : rows - 1;
      from[j] = x + row * x_stride;
      to[j] = y + row * y_stride;
    }
    run(from, to);
  }
}

// y <- LayerNorm(x), row by row.   x: rows x_stride apart   y: rows y_stride apart, or x itself
template <class Out>
inline void layer_norm_rows(const float* x, int64_t x_stride, int64_t rows, int64_t C,
                            const NormArgs& norm, Out* y, int64_t y_stride) {
  foreach_four_rows(x, x_stride, rows, y, y_stride, [&](const float* const* from, Out* const* to) {
    layer_norm_four(from, C, norm, to);
  });
}

// The same into rows of units (gemm.h), the left-hand side of a matrix product.
//   units: [rows, row_units(C)]
template <class scalar_t>
inline void layer_norm_to_units(const float* x, int64_t x_stride, int64_t rows, int64_t C,
                                const NormArgs& norm, float* units) {
  using Op = Operand<scalar_t>;
  if constexpr (!Op::kElementwise) {
    foreach_four_rows(x, x_stride, rows, units, row_units<scalar_t>(C),
                      [&](const float* const* from, float* const* to) {
                        layer_norm_four_blocks<scalar_t>(from, C, norm, to);
                      });
  } else {
    typename Op::Element* out = reinterpret_cast<typename Op::Element*>(units);
    const int64_t stride = right_units<scalar_t>(C) * Op::kPerUnit;
    layer_norm_rows(x, x_stride, rows, C, norm, out, stride);
    for (int64_t i = 0; i < rows && C < stride; ++i) {
      out[i * stride + C] = typename Op::Element{0.f};  // the pair of the last one
    }
  }
}

#endif  // PVT_BODY_LAYER_NORM
