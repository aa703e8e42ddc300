// LayerNorm and linear layers in ATen, as the packed operators hold them. Products are taken in the
// dtype of their weight, with 8-bit ones and everything else in that of the tokens.
#pragma once

#include "aten/arithmetic.h"
#include "checks.h"

namespace pvt {

// [rows, columns] from the panels [panels, columns / group, 16, group] of pvt_ext.packing; float32
// from 8-bit ones.
inline Tensor unpack_weight(const Tensor& packed, int64_t rows, int64_t columns) {
  if (packed.scalar_type() == ScalarType::Byte) {
    const int64_t depth = packed.size(1) - 1;
    Tensor panels = packed;
    const Tensor units = torch::stable::narrow(panels, 1, 0, depth);
    const Tensor scales =  // [panels, 1, 16, 1]
        call_aten("aten::view", "dtype",
                  torch::stable::contiguous(torch::stable::narrow(panels, 1, depth, 1)),
                  ScalarType::Float);
    const Tensor offset =
        torch::stable::full({1}, 128.0, ScalarType::Float, std::nullopt, packed.device());
    const Tensor values =
        torch::stable::subtract(torch::stable::to(units, ScalarType::Float), offset);
    return unpack_weight(call_aten("aten::mul", "Tensor", values, scales), rows, columns);
  }
  const Tensor dense =
      call_aten("aten::permute", "", packed, std::vector<int64_t>{0, 2, 1, 3});  // p, 16, k, group
  Tensor matrix = torch::stable::reshape(
      dense, {packed.size(0) * kPackedColumns, packed.size(1) * packed.size(3)});
  Tensor some_rows = torch::stable::narrow(matrix, 0, 0, rows);
  return torch::stable::narrow(some_rows, 1, 0, columns);
}

// What x and the weight are multiplied in.
inline ScalarType product_dtype(const Tensor& packed, const Tensor& x) {
  return packed.scalar_type() == ScalarType::Byte ? x.scalar_type() : packed.scalar_type();
}

// Tokens [B, H' * W', C] of the convolution of x [B, C_in, H, W]; weight: packed, channels
// innermost.
inline Tensor convolve_aten(const Tensor& x, const Tensor& packed, const Tensor& bias,
                            int64_t kernel_size, int64_t stride, int64_t padding) {
  const int64_t C = bias.size(0), C_in = x.size(1);
  const Tensor matrix = unpack_weight(packed, C, kernel_size * kernel_size * C_in);
  const Tensor weight = call_aten(
      "aten::permute", "", torch::stable::reshape(matrix, {C, kernel_size, kernel_size, C_in}),
      Ints{0, 3, 1, 2});
  const ScalarType dtype = product_dtype(packed, x);
  const Tensor map = call_aten("aten::conv2d", "", torch::stable::to(x, dtype), weight,
                               std::optional<Tensor>(torch::stable::to(bias, dtype)),
                               Ints{stride, stride}, Ints{padding, padding}, Ints{1, 1},
                               /*groups=*/int64_t{1});
  Tensor flat = torch::stable::reshape(map, {x.size(0), C, map.size(2) * map.size(3)});
  return torch::stable::to(torch::stable::transpose(flat, 1, 2), x.scalar_type());
}

// depthwise_conv_aten() with weight [3, 3, C].
inline Tensor depthwise_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                             const Tensor& bias) {
  const Tensor filters = torch::stable::reshape(
      call_aten("aten::permute", "", torch::stable::to(weight, x.scalar_type()), Ints{2, 0, 1}),
      {x.size(2), 1, 3, 3});
  return depthwise_conv_aten(x, H, W, filters,
                             std::optional<Tensor>(torch::stable::to(bias, x.scalar_type())));
}

inline Tensor linear_aten(const Tensor& x, const Tensor& packed, const Tensor& bias) {
  const Tensor weight = unpack_weight(packed, bias.size(0), x.size(-1));
  const ScalarType dtype = product_dtype(packed, x);
  const Tensor out = call_aten("aten::linear", "", torch::stable::to(x, dtype), weight,
                               std::optional<Tensor>(torch::stable::to(bias, dtype)));
  return torch::stable::to(out, x.scalar_type());
}

inline Tensor layer_norm_aten(const Tensor& x, const Tensor& weight, const Tensor& bias,
                              double eps) {
  return call_aten("aten::layer_norm", "", x, std::vector<int64_t>{x.size(-1)},
                   std::optional<Tensor>(torch::stable::to(weight, x.scalar_type())),
                   std::optional<Tensor>(torch::stable::to(bias, x.scalar_type())), eps,
                   /*cudnn_enable=*/true);
}

inline Tensor add_aten(const Tensor& a, const Tensor& b) {
  return torch::stable::subtract(a, b, -1.0);
}

}  // namespace pvt
