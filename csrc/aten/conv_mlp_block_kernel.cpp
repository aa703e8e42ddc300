// conv_mlp_block_ as ATen calls, on weights that are unpacked at every call.
#include "aten/kernels.h"
#include "aten/layers.h"

namespace pvt {

void conv_mlp_block_aten(Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                         const Tensor& norm_bias, double eps, const Tensor& fc1_weight,
                         const Tensor& fc1_bias, bool relu, const Tensor& dwconv_weight,
                         const Tensor& dwconv_bias, const Tensor& fc2_weight,
                         const Tensor& fc2_bias) {
  check_conv_mlp_block(x, H, W, norm_weight, norm_bias, fc1_weight, fc1_bias, dwconv_weight,
                       dwconv_bias, fc2_weight, fc2_bias);
  const Tensor tokens = layer_norm_aten(x, norm_weight, norm_bias, eps);
  Tensor hidden = linear_aten(tokens, fc1_weight, fc1_bias);
  if (relu) {
    hidden = call_aten("aten::relu", "", hidden);
  }
  hidden = depthwise_aten(hidden, H, W, dwconv_weight, dwconv_bias);
  hidden = call_aten("aten::gelu", "", hidden, std::string("none"));
  torch::stable::copy_(x, add_aten(x, linear_aten(hidden, fc2_weight, fc2_bias)));
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("conv_mlp_block_", TORCH_BOX(&pvt::conv_mlp_block_aten));
}
