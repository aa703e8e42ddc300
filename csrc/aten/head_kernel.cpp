// head as ATen's linear layer.
#include "aten/call.h"
#include "aten/kernels.h"
#include "checks.h"

namespace pvt {

Tensor head_aten(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_head(x, weight, bias);
  return call_aten("aten::linear", "", x, weight,
                   std::optional<Tensor>(torch::stable::to(bias, x.scalar_type())));
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("head", TORCH_BOX(&pvt::head_aten));
}
