// mlp_block_ as ATen calls, on weights that are unpacked at every call.
#include "aten/kernels.h"
#include "aten/layers.h"

namespace pvt {

void mlp_block_aten(Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                    const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                    const Tensor& fc2_bias) {
  check_mlp_block(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  const Tensor tokens = layer_norm_aten(x, norm_weight, norm_bias, eps);
  const Tensor hidden =
      call_aten("aten::gelu", "", linear_aten(tokens, fc1_weight, fc1_bias), std::string("none"));
  torch::stable::copy_(x, add_aten(x, linear_aten(hidden, fc2_weight, fc2_bias)));
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("mlp_block_", TORCH_BOX(&pvt::mlp_block_aten));
}
