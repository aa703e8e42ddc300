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
