// spatial_reduction_backward as products of ATen: windows do not overlap, so the convolution is one
// product of the windows as rows.
#include "aten/arithmetic.h"
#include "aten/kernels.h"

namespace pvt {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_reduction_backward_aten(
    const Tensor& grad, const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
    const Tensor& bias, const Tensor& norm_weight, int64_t sr_ratio, double eps, bool need_x,
    bool need_weights) {
  const ReductionShape s =
      check_spatial_reduction_backward(grad, x, H, W, weight, bias, norm_weight, sr_ratio);
  const int64_t R = s.sr_ratio, rows = s.B * s.kv_len(), window = R * R * s.C;
  // B, H * W, C -> B, H' * R, W' * R, C, what the windows cover
  const auto covered = [&](const Tensor& tokens) {
    Tensor map = torch::stable::reshape(tokens, {s.B, s.H, s.W, s.C});
    Tensor some = torch::stable::narrow(map, 1, 0, s.out_H() * R);
    return torch::stable::narrow(some, 2, 0, s.out_W() * R);
  };
  const Tensor windows = torch::stable::reshape(
      call_aten("aten::permute", "",
                torch::stable::reshape(covered(x), {s.B, s.out_H(), R, s.out_W(), R, s.C}),
                Ints{0, 1, 3, 2, 4, 5}),
      {rows, window});
  const Tensor matrix = torch::stable::reshape(  // C, R * R * C
      call_aten("aten::permute", "", weight, Ints{0, 2, 3, 1}), {s.C, window});

  // out = normal * norm_weight + norm_bias,  normal = (conv - mean) * scale
  const ScalarType sum = sum_dtype(x.scalar_type());
  const auto wide = [&](const Tensor& t) { return torch::stable::to(t, sum); };
  const Tensor conv =
      wide(call_aten("aten::linear", "", windows, matrix, std::optional<Tensor>(bias)));
  const Tensor centred = torch::stable::subtract(conv, mean_aten(conv, -1));
  const Tensor variance = mean_aten(multiply_aten(centred, centred), -1);
  const Tensor scale =
      call_aten("aten::rsqrt", "", torch::stable::subtract(variance, scalar_like(-eps, variance)));
  const Tensor normal = multiply_aten(centred, scale);
  const Tensor d_out = wide(torch::stable::reshape(grad, {rows, s.C}));
  const Tensor d_normal = multiply_aten(d_out, wide(norm_weight));
  const Tensor along = multiply_aten(normal, mean_aten(multiply_aten(d_normal, normal), -1));
  const Tensor d_conv = multiply_aten(
      torch::stable::subtract(torch::stable::subtract(d_normal, mean_aten(d_normal, -1)), along),
      scale);
  const Tensor d_rows = torch::stable::to(d_conv, x.scalar_type());

  Tensor d_x = no_grad_like(x);
  if (need_x) {
    d_x = torch::stable::new_zeros(x, {s.B, s.H * s.W, s.C});
    Tensor target = covered(d_x);
    const Tensor d_windows = torch::stable::reshape(torch::stable::matmul(d_rows, matrix),
                                                    {s.B, s.out_H(), s.out_W(), R, R, s.C});
    torch::stable::copy_(target, torch::stable::reshape(call_aten("aten::permute", "", d_windows,
                                                                  Ints{0, 1, 3, 2, 4, 5}),
                                                        {s.B, s.out_H() * R, s.out_W() * R, s.C}));
  }
  if (!need_weights) {
    return grad_of_x(d_x);
  }
  const auto narrow = [&](const Tensor& t) { return torch::stable::to(t, x.scalar_type()); };
  const Tensor d_matrix = torch::stable::matmul(torch::stable::transpose(d_rows, 0, 1), windows);
  const Tensor d_weight = torch::stable::contiguous(call_aten(
      "aten::permute", "", torch::stable::reshape(d_matrix, {s.C, R, R, s.C}), Ints{0, 3, 1, 2}));
  return {d_x, d_weight, narrow(sum_aten(d_conv, 0, false)),
          narrow(sum_aten(multiply_aten(d_out, normal), 0, false)),
          narrow(sum_aten(d_out, 0, false))};
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("spatial_reduction_backward", TORCH_BOX(&pvt::spatial_reduction_backward_aten));
}
