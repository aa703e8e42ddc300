// The operators as compositions of ATen calls: for devices and dtypes without a kernel of our own.
// Visible to libpvt_ops_cuda.so, which takes them for what its kernels leave out.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace pvt {

using torch::stable::Tensor;

#pragma GCC visibility push(default)

Tensor sra_attention_aten(const Tensor& q, const Tensor& kv, int64_t num_heads, double scale);

Tensor spatial_reduction_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                              const Tensor& bias, const Tensor& norm_weight,
                              const Tensor& norm_bias, int64_t sr_ratio, double eps);

Tensor mlp_aten(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias,
                const Tensor& fc2_weight, const Tensor& fc2_bias);

Tensor dwconv_gelu_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                        const Tensor& bias, bool relu);

std::tuple<Tensor, Tensor, Tensor> dwconv_gelu_backward_aten(const Tensor& grad, const Tensor& x,
                                                             int64_t H, int64_t W,
                                                             const Tensor& weight,
                                                             const Tensor& bias, bool relu,
                                                             bool need_x, bool need_weights);

std::tuple<Tensor, Tensor> sra_attention_backward_aten(const Tensor& grad, const Tensor& q,
                                                       const Tensor& kv, int64_t num_heads,
                                                       double scale, bool need_q, bool need_kv);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_reduction_backward_aten(
    const Tensor& grad, const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
    const Tensor& bias, const Tensor& norm_weight, int64_t sr_ratio, double eps, bool need_x,
    bool need_weights);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mlp_backward_aten(
    const Tensor& grad, const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias,
    const Tensor& fc2_weight, bool need_x, bool need_weights);

Tensor patch_embed_aten(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                        const std::optional<Tensor>& position, int64_t kernel_size, int64_t stride,
                        int64_t padding);

Tensor reduce_kv_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                      const Tensor& norm_bias, double eps, const std::optional<Tensor>& sr_weight,
                      const std::optional<Tensor>& sr_bias,
                      const std::optional<Tensor>& sr_norm_weight,
                      const std::optional<Tensor>& sr_norm_bias, double sr_eps,
                      const Tensor& kv_weight, const Tensor& kv_bias, int64_t sr_ratio);

Tensor pool_kv_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                    const Tensor& norm_bias, double eps, int64_t pool_size, const Tensor& sr_weight,
                    const Tensor& sr_bias, const Tensor& sr_norm_weight, const Tensor& sr_norm_bias,
                    double sr_eps, const Tensor& kv_weight, const Tensor& kv_bias);

void attention_block_aten(Tensor& x, const Tensor& kv, const Tensor& norm_weight,
                          const Tensor& norm_bias, double eps, const Tensor& q_weight,
                          const Tensor& q_bias, const Tensor& proj_weight, const Tensor& proj_bias,
                          int64_t num_heads, double scale);

void mlp_block_aten(Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                    const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                    const Tensor& fc2_bias);

void conv_mlp_block_aten(Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                         const Tensor& norm_bias, double eps, const Tensor& fc1_weight,
                         const Tensor& fc1_bias, bool relu, const Tensor& dwconv_weight,
                         const Tensor& dwconv_bias, const Tensor& fc2_weight,
                         const Tensor& fc2_bias);

Tensor head_aten(const Tensor& x, const Tensor& weight, const Tensor& bias);

#pragma GCC visibility pop

}  // namespace pvt
