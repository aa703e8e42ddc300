// LayerNorm of one row. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_LAYER_NORM
#define PVT_BODY_LAYER_NORM

#include "cpu/gemm.h"

// y <- (x - mean(x)) / sqrt(var(x) + eps) * weight + bias   for one row of C floats, in place
inline void layer_norm_row(float* x, int64_t C, const NormArgs& norm) {
  int64_t c = 0;
  Vec partial{};
  for (; c + kLanes <= C; c += kLanes) {
    partial += load(x + c);
  }
  float sum = reduce_add(partial);
  for (; c < C; ++c) {
    sum += x[c];
  }
  const float mean = sum / static_cast<float>(C);
  partial = Vec{};
  for (c = 0; c + kLanes <= C; c += kLanes) {
    const Vec centred = load(x + c) - mean;
    partial = fmadd(centred, centred, partial);
  }
  float square = reduce_add(partial);
  for (; c < C; ++c) {
    square += (x[c] - mean) * (x[c] - mean);
  }
  const float scale = 1.f / std::sqrt(square / static_cast<float>(C) + norm.eps);
  for (c = 0; c + kLanes <= C; c += kLanes) {
    const Vec normal = (load(x + c) - mean) * scale;
    store(x + c, fmadd(normal, load(norm.weight + c), load(norm.bias + c)));
  }
  for (; c < C; ++c) {
    x[c] = (x[c] - mean) * scale * norm.weight[c] + norm.bias[c];
  }
}

// row <- LayerNorm(row + bias)   row: [C] floats, in place
inline void bias_layer_norm_row(float* row, int64_t C, const float* bias, const NormArgs& norm) {
  for (int64_t c = 0; c < C; ++c) {
    row[c] += bias[c];
  }
  layer_norm_row(row, C, norm);
}

// units <- LayerNorm(x), row by row, as the left-hand side of a matrix product.
//   x: [rows, C]   units: [rows, num_units(C)]   row: scratch, [C]
template <class scalar_t>
inline void layer_norm_to_units(const scalar_t* x, int64_t rows, int64_t C, const NormArgs& norm,
                                float* units, float* row) {
  for (int64_t i = 0; i < rows; ++i) {
    to_float(x + i * C, C, row);
    layer_norm_row(row, C, norm);
    Operand<scalar_t>::floats_to_units(row, C, units + i * num_units<scalar_t>(C));
  }
}

#endif  // PVT_BODY_LAYER_NORM
