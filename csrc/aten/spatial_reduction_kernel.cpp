// spatial_reduction as ATen's convolution and LayerNorm.
#include "aten/call.h"
#include "aten/kernels.h"
#include "checks.h"

namespace pvt {

Tensor spatial_reduction_aten(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                              const Tensor& bias, const Tensor& norm_weight,
                              const Tensor& norm_bias, int64_t sr_ratio, double eps) {
  using Ints = std::vector<int64_t>;
  const ReductionShape s =
      check_spatial_reduction(x, H, W, weight, bias, norm_weight, norm_bias, sr_ratio);
  // B, N, C -> B, C, H, W: a view, so the convolution sees channels_last memory.
  const Tensor grid =
      torch::stable::reshape(torch::stable::transpose(x, 1, 2), {s.B, s.C, s.H, s.W});
  const Tensor reduced =
      call_aten("aten::conv2d", "", grid, weight, std::optional<Tensor>(bias),
                Ints{sr_ratio, sr_ratio}, Ints{0, 0}, Ints{1, 1}, /*groups=*/int64_t{1});
  // B, C, H', W' -> B, kv_len, C
  const Tensor tokens =
      torch::stable::transpose(torch::stable::reshape(reduced, {s.B, s.C, s.kv_len()}), 1, 2);
  const Tensor out =
      call_aten("aten::layer_norm", "", tokens, Ints{s.C}, std::optional<Tensor>(norm_weight),
                std::optional<Tensor>(norm_bias), eps, /*cudnn_enable=*/true);
  return torch::stable::contiguous(out);
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("spatial_reduction", TORCH_BOX(&pvt::spatial_reduction_aten));
}
