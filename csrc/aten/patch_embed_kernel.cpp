// patch_embed as ATen's convolution and LayerNorm, on a weight that is unpacked at every call.
#include "aten/kernels.h"
#include "aten/layers.h"

namespace pvt {

Tensor patch_embed_aten(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                        const std::optional<Tensor>& position, int64_t kernel_size, int64_t stride,
                        int64_t padding) {
  check_patch_embed(x, weight, bias, norm_weight, norm_bias, position, kernel_size, stride,
                    padding);
  const Tensor tokens = convolve_aten(x, weight, bias, kernel_size, stride, padding);
  const Tensor out = layer_norm_aten(tokens, norm_weight, norm_bias, eps);
  return torch::stable::contiguous(
      position.has_value() ? add_aten(out, torch::stable::to(*position, x.scalar_type())) : out);
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("patch_embed", TORCH_BOX(&pvt::patch_embed_aten));
}
