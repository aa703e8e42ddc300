// attention_block_ as ATen calls, on weights that are unpacked at every call.
#include "aten/kernels.h"
#include "aten/layers.h"

namespace pvt {

void attention_block_aten(Tensor& x, const Tensor& kv, const Tensor& norm_weight,
                          const Tensor& norm_bias, double eps, const Tensor& q_weight,
                          const Tensor& q_bias, const Tensor& proj_weight, const Tensor& proj_bias,
                          int64_t num_heads, double scale) {
  check_attention_block(x, kv, norm_weight, norm_bias, q_weight, q_bias, proj_weight, proj_bias,
                        num_heads);
  const Tensor q = linear_aten(layer_norm_aten(x, norm_weight, norm_bias, eps), q_weight, q_bias);
  const Tensor heads = sra_attention_aten(q, kv, num_heads, scale);
  torch::stable::copy_(x, add_aten(x, linear_aten(heads, proj_weight, proj_bias)));
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("attention_block_", TORCH_BOX(&pvt::attention_block_aten));
}
