// dwconv_gelu as ATen's convolution and GELU.
#include "aten/arithmetic.h"
#include "aten/kernels.h"

namespace pvt {

Tensor dwconv_gelu_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                        const Tensor& bias, bool relu) {
  check_dwconv_gelu(x, H, W, weight, bias);
  const Tensor conv = depthwise_conv_aten(relu ? call_aten("aten::relu", "", x) : x, H, W, weight,
                                          std::optional<Tensor>(bias));
  return torch::stable::contiguous(call_aten("aten::gelu", "", conv, std::string("none")));
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("dwconv_gelu", TORCH_BOX(&pvt::dwconv_gelu_aten));
}
