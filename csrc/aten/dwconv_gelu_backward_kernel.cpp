// dwconv_gelu_backward in ATen: the gradient of x is the convolution of the gradient with the
// filter turned around, that of the filter a product of the gradient and of x moved to each of nine
// places.
#include "aten/arithmetic.h"
#include "aten/kernels.h"

namespace pvt {

std::tuple<Tensor, Tensor, Tensor> dwconv_gelu_backward_aten(const Tensor& grad, const Tensor& x,
                                                             int64_t H, int64_t W,
                                                             const Tensor& weight,
                                                             const Tensor& bias, bool relu,
                                                             bool need_x, bool need_weights) {
  const DepthwiseShape s = check_dwconv_gelu_backward(grad, x, H, W, weight, bias);
  const Tensor input = relu ? call_aten("aten::relu", "", x) : x;
  const Tensor conv = depthwise_conv_aten(input, H, W, weight, std::optional<Tensor>(bias));
  const Tensor d_conv =
      call_aten("aten::gelu_backward", "", torch::stable::reshape(grad, {s.B, H * W, s.C}), conv,
                std::string("none"));
  Tensor d_x = no_grad_like(x), d_weight = no_grad_like(x), d_bias = no_grad_like(x);
  if (need_x) {
    const Tensor turned = call_aten("aten::flip", "", weight, Ints{2, 3});
    d_x = torch::stable::contiguous(
        depthwise_conv_aten(d_conv, H, W, turned, std::optional<Tensor>()));
    if (relu) {
      const Tensor zero = scalar_like(0, x);
      d_x =
          call_aten("aten::where", "self", call_aten("aten::le", "Tensor", input, zero), zero, d_x);
    }
  }
  if (need_weights) {
    const ScalarType sum = sum_dtype(x.scalar_type());
    const auto as_map = [&](const Tensor& t) {
      return torch::stable::reshape(torch::stable::to(t, sum), {s.B, H, W, s.C});
    };
    const Tensor d_map = as_map(d_conv);
    Tensor padded = torch::stable::new_zeros(d_map, {s.B, H + 2, W + 2, s.C});
    Tensor rows = torch::stable::narrow(padded, 1, 1, H);
    Tensor inside = torch::stable::narrow(rows, 2, 1, W);
    torch::stable::copy_(inside, as_map(input));
    Tensor taps = torch::stable::empty({9, s.C}, sum, std::nullopt, x.device());
    for (int64_t t = 0; t < 9; ++t) {
      Tensor moved_rows = torch::stable::narrow(padded, 1, t / 3, H);
      const Tensor moved = torch::stable::narrow(moved_rows, 2, t % 3, W);
      Tensor tap = torch::stable::select(taps, 0, t);
      torch::stable::copy_(
          tap, sum_aten(torch::stable::reshape(multiply_aten(moved, d_map), {s.B * H * W, s.C}), 0,
                        /*keepdim=*/false));
    }
    d_weight = torch::stable::to(torch::stable::contiguous(torch::stable::reshape(
                                     torch::stable::transpose(taps, 0, 1), {s.C, 1, 3, 3})),
                                 x.scalar_type());
    d_bias = torch::stable::to(
        sum_aten(torch::stable::reshape(d_map, {s.B * H * W, s.C}), 0, /*keepdim=*/false),
        x.scalar_type());
  }
  return {d_x, d_weight, d_bias};
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("dwconv_gelu_backward", TORCH_BOX(&pvt::dwconv_gelu_backward_aten));
}
