// pool_kv as ATen calls, on weights that are unpacked at every call.
#include "aten/kernels.h"
#include "aten/layers.h"

namespace pvt {

Tensor pool_kv_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                    const Tensor& norm_bias, double eps, int64_t pool_size, const Tensor& sr_weight,
                    const Tensor& sr_bias, const Tensor& sr_norm_weight, const Tensor& sr_norm_bias,
                    double sr_eps, const Tensor& kv_weight, const Tensor& kv_bias) {
  const PoolShape s = check_pool_kv(x, H, W, norm_weight, norm_bias, pool_size, sr_weight, sr_bias,
                                    sr_norm_weight, sr_norm_bias, kv_weight, kv_bias);
  Tensor tokens = layer_norm_aten(x, norm_weight, norm_bias, eps);
  const Tensor map =
      torch::stable::reshape(torch::stable::transpose(tokens, 1, 2), {s.B, s.C, H, W});
  const Tensor cells =
      call_aten("aten::adaptive_avg_pool2d", "", map, std::vector<int64_t>{pool_size, pool_size});
  tokens = convolve_aten(cells, sr_weight, sr_bias, /*kernel_size=*/1, /*stride=*/1, /*padding=*/0);
  tokens = layer_norm_aten(tokens, sr_norm_weight, sr_norm_bias, sr_eps);
  return linear_aten(call_aten("aten::gelu", "", tokens, std::string("none")), kv_weight, kv_bias);
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("pool_kv", TORCH_BOX(&pvt::pool_kv_aten));
}
