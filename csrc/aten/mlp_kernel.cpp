// mlp as ATen's linear layers and GELU.
#include "aten/call.h"
#include "aten/kernels.h"
#include "checks.h"

namespace pvt {

Tensor mlp_aten(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias,
                const Tensor& fc2_weight, const Tensor& fc2_bias) {
  check_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  const Tensor hidden =
      call_aten("aten::linear", "", x, fc1_weight, std::optional<Tensor>(fc1_bias));
  return call_aten("aten::linear", "", call_aten("aten::gelu", "", hidden, std::string("none")),
                   fc2_weight, std::optional<Tensor>(fc2_bias));
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("mlp", TORCH_BOX(&pvt::mlp_aten));
}
