// mlp_backward as products of ATen, with the hidden tensors in memory.
#include "aten/arithmetic.h"
#include "aten/kernels.h"

namespace pvt {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mlp_backward_aten(
    const Tensor& grad, const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias,
    const Tensor& fc2_weight, bool need_x, bool need_weights) {
  const MlpShape s = check_mlp_backward(grad, x, fc1_weight, fc1_bias, fc2_weight);
  const Tensor rows = torch::stable::reshape(x, {s.rows, s.C});
  const Tensor d_out = torch::stable::reshape(grad, {s.rows, s.C});
  const Tensor before =
      call_aten("aten::linear", "", rows, fc1_weight, std::optional<Tensor>(fc1_bias));
  const Tensor d_before =
      call_aten("aten::gelu_backward", "", torch::stable::matmul(d_out, fc2_weight), before,
                std::string("none"));
  const Tensor d_x = need_x ? torch::stable::reshape(torch::stable::matmul(d_before, fc1_weight),
                                                     {x.size(0), x.size(1), s.C})
                            : no_grad_like(x);
  if (!need_weights) {
    return grad_of_x(d_x);
  }
  const Tensor hidden = call_aten("aten::gelu", "", before, std::string("none"));
  const auto transposed = [](const Tensor& t) { return torch::stable::transpose(t, 0, 1); };
  return {d_x, torch::stable::matmul(transposed(d_before), rows), sum_aten(d_before, 0, false),
          torch::stable::matmul(transposed(d_out), hidden), sum_aten(d_out, 0, false)};
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("mlp_backward", TORCH_BOX(&pvt::mlp_backward_aten));
}
