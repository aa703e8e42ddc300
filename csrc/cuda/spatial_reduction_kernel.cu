// spatial_reduction on CUDA: which tokens have kernels, and their launch. The weight takes its
// panels first.
#include <torch/csrc/stable/library.h>

#include "aten/call.h"
#include "aten/kernels.h"
#include "cuda/packed.h"
#include "cuda/patch_norm.h"

namespace pvt::cuda {
namespace {

// weight [C, C, R, R] in panels (pvt_ext/packing.py): [C / 16, R, R, C / 2, 16, 2].
Tensor in_panels(const Tensor& weight) {
  const int64_t C = weight.size(0), R = weight.size(2);
  const Tensor split = torch::stable::reshape(weight, {C / kPanel, kPanel, C / 2, 2, R, R});
  return call_aten("aten::permute", "", split, std::vector<int64_t>{0, 4, 5, 2, 1, 3});
}

template <class scalar_t, int C>
void run(const Device& device, const Tensor& x, const Tensor& weight, ConvolveArgs args) {
  const Weight packed(in_panels(weight));
  args.weight = packed.data();
  run_patches<scalar_t, C, C>(device, x, args);
}

// Runs the kernels if there are some for so many channels.
template <class scalar_t>
bool dispatch_channels(const Device& device, const Tensor& x, const Tensor& weight,
                       const ConvolveArgs& args) {
  switch (args.C_out) {
    case 32:
      return run<scalar_t, 32>(device, x, weight, args), true;
    case 64:
      return run<scalar_t, 64>(device, x, weight, args), true;
    case 128:
      return run<scalar_t, 128>(device, x, weight, args), true;
    case 160:
      return run<scalar_t, 160>(device, x, weight, args), true;
    case 320:
      return run<scalar_t, 320>(device, x, weight, args), true;
    default:
      return false;
  }
}

}  // namespace

Tensor spatial_reduction_cuda(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                              const Tensor& bias, const Tensor& norm_weight,
                              const Tensor& norm_bias, int64_t sr_ratio, double eps) {
  const ReductionShape s =
      check_spatial_reduction(x, H, W, weight, bias, norm_weight, norm_bias, sr_ratio);
  const Device device("spatial_reduction", x);
  if (s.B > 0 && s.C <= kMaxChannels && s.H * s.W <= INT32_MAX && is_16_bit(x.scalar_type()) &&
      device.can_run_kernels()) {
    const Tensor tokens = vector_rows(x);
    const Vector conv_bias(bias), norm_w(norm_weight), norm_b(norm_bias);
    Tensor out = torch::stable::new_empty(x, {s.B, s.kv_len(), s.C});
    ConvolveArgs args = reduction_args(s, tokens);
    args.end = {conv_bias.data(),        norm_w.data(), norm_b.data(),
                static_cast<float>(eps), nullptr,       0,
                out.mutable_data_ptr()};
    bool done = false;
    dispatch_16_bit(x.scalar_type(), [&](auto type) {
      done = dispatch_channels<decltype(type)>(device, tokens, weight, args);
    });
    if (done) {
      return out;
    }
  }
  return spatial_reduction_aten(x, H, W, weight, bias, norm_weight, norm_bias, sr_ratio, eps);
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("spatial_reduction", TORCH_BOX(&pvt::cuda::spatial_reduction_cuda));
}
