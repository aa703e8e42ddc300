// Sums and products for gradients in ATen.
#pragma once

#include "aten/call.h"
#include "checks.h"

#include <tuple>

namespace pvt {

using Ints = std::vector<int64_t>;

inline Tensor multiply_aten(const Tensor& a, const Tensor& b) {
  return call_aten("aten::mul", "Tensor", a, b);
}

// A scalar that can stand beside `like`.
inline Tensor scalar_like(double value, const Tensor& like) {
  return torch::stable::full({}, value, like.scalar_type(), std::nullopt, like.device());
}

inline Tensor sum_aten(const Tensor& x, int64_t dim, bool keepdim) {
  return call_aten("aten::sum", "dim_IntList", x, std::optional<Ints>(Ints{dim}), keepdim,
                   std::optional<ScalarType>());
}

inline Tensor mean_aten(const Tensor& x, int64_t dim) {
  return call_aten("aten::mean", "dim", x, std::optional<Ints>(Ints{dim}), /*keepdim=*/true,
                   std::optional<ScalarType>());
}

// The depthwise convolution of tokens x [B, H * W, C] with weight [C, 1, 3, 3], zeros around the
// grid, as tokens.
inline Tensor depthwise_conv_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                                  const std::optional<Tensor>& bias) {
  const int64_t B = x.size(0), C = x.size(2);
  const Tensor map = torch::stable::reshape(torch::stable::transpose(x, 1, 2), {B, C, H, W});
  const Tensor out = call_aten("aten::conv2d", "", map, weight, bias, Ints{1, 1}, Ints{1, 1},
                               Ints{1, 1}, /*groups=*/C);
  return torch::stable::transpose(torch::stable::reshape(out, {B, C, H * W}), 1, 2);
}

// What sums of values of `dtype` are taken in.
inline ScalarType sum_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? dtype : ScalarType::Float;
}

// The gradient that nobody asked for.
inline Tensor no_grad_like(const Tensor& x) {
  return torch::stable::new_empty(x, {0});
}

// That of x alone, where nobody asked for those of four weights.
inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> grad_of_x(const Tensor& d_x) {
  return {d_x, no_grad_like(d_x), no_grad_like(d_x), no_grad_like(d_x), no_grad_like(d_x)};
}

}  // namespace pvt
