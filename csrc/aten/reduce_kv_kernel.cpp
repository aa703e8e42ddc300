// reduce_kv as ATen calls, on weights that are unpacked at every call.
#include "aten/kernels.h"
#include "aten/layers.h"

namespace pvt {

Tensor reduce_kv_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                      const Tensor& norm_bias, double eps, const std::optional<Tensor>& sr_weight,
                      const std::optional<Tensor>& sr_bias,
                      const std::optional<Tensor>& sr_norm_weight,
                      const std::optional<Tensor>& sr_norm_bias, double sr_eps,
                      const Tensor& kv_weight, const Tensor& kv_bias, int64_t sr_ratio) {
  const ReductionShape s =
      check_reduce_kv(x, H, W, norm_weight, norm_bias, sr_weight, sr_bias, sr_norm_weight,
                      sr_norm_bias, kv_weight, kv_bias, sr_ratio);
  Tensor tokens = layer_norm_aten(x, norm_weight, norm_bias, eps);
  if (sr_weight.has_value()) {
    const Tensor map =
        torch::stable::reshape(torch::stable::transpose(tokens, 1, 2), {s.B, s.C, H, W});
    tokens = convolve_aten(map, *sr_weight, *sr_bias, sr_ratio, sr_ratio, /*padding=*/0);
    tokens = layer_norm_aten(tokens, *sr_norm_weight, *sr_norm_bias, sr_eps);
  }
  return linear_aten(tokens, kv_weight, kv_bias);
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("reduce_kv", TORCH_BOX(&pvt::reduce_kv_aten));
}
