// The operators as compositions of ATen calls: for devices and dtypes without a kernel of our own.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace pvt {

torch::stable::Tensor sra_attention_aten(const torch::stable::Tensor& q,
                                         const torch::stable::Tensor& kv, int64_t num_heads,
                                         double scale);

torch::stable::Tensor spatial_reduction_aten(const torch::stable::Tensor& x, int64_t H, int64_t W,
                                             const torch::stable::Tensor& weight,
                                             const torch::stable::Tensor& bias,
                                             const torch::stable::Tensor& norm_weight,
                                             const torch::stable::Tensor& norm_bias,
                                             int64_t sr_ratio, double eps);

}  // namespace pvt
