// conv_mlp_block_ on CUDA: which tokens have kernels, and their launch. There are three: fc1 of
// normalised tokens, the depthwise convolution with its GELU, and fc2 with the sum.
#include <torch/csrc/stable/library.h>

#include "aten/kernels.h"
#include "cuda/depthwise_impl.h"
#include "cuda/mlp_layers.h"

namespace pvt::cuda {
namespace {

constexpr int kDepthwiseWarps = 4;

template <class scalar_t, bool kRelu>
__global__ void __launch_bounds__(kDepthwiseWarps* kLanes) depthwise_kernel(DepthwiseArgs args) {
  DeviceBlock<kDepthwiseWarps> block;
  depthwise_gelu<scalar_t, kRelu>(block, args);
}

template <class scalar_t>
void run_depthwise(const Device& device, const DepthwiseArgs& args, bool relu) {
  constexpr int kThreads = kDepthwiseWarps * kLanes;
  const int64_t lanes = depthwise_lanes(args.B, args.H, args.W, args.C);
  const int64_t blocks = (lanes + kThreads - 1) / kThreads;
  if (relu) {
    launch<depthwise_kernel<scalar_t, true>>(device, blocks, kThreads, 0, args);
  } else {
    launch<depthwise_kernel<scalar_t, false>>(device, blocks, kThreads, 0, args);
  }
}

template <class scalar_t, int C>
void run(const Device& device, const Tensor& x, const MlpBlockArgs& mlp, DepthwiseArgs depthwise,
         bool relu) {
  const Tensor hidden = torch::stable::new_empty(x, {mlp.rows, mlp.hidden});
  const Tensor active = torch::stable::new_empty(x, {mlp.rows, mlp.hidden});
  const MlpLayers<scalar_t, C, /*kMany=*/true> layers(device, x, mlp);
  layers.template fc1<Then::kStore>(hidden.mutable_data_ptr());
  depthwise.x = hidden.const_data_ptr(), depthwise.out = active.mutable_data_ptr();
  run_depthwise<scalar_t>(device, depthwise, relu);
  layers.fc2(active.const_data_ptr());
}

// Runs kernels if there are some for so many channels.
template <class scalar_t>
bool dispatch_channels(const Device& device, const Tensor& x, int64_t C, const MlpBlockArgs& mlp,
                       const DepthwiseArgs& depthwise, bool relu) {
  switch (C) {
    case 32:
      return run<scalar_t, 32>(device, x, mlp, depthwise, relu), true;
    case 64:
      return run<scalar_t, 64>(device, x, mlp, depthwise, relu), true;
    case 128:
      return run<scalar_t, 128>(device, x, mlp, depthwise, relu), true;
    case 160:
      return run<scalar_t, 160>(device, x, mlp, depthwise, relu), true;
    case 256:
      return run<scalar_t, 256>(device, x, mlp, depthwise, relu), true;
    case 320:
      return run<scalar_t, 320>(device, x, mlp, depthwise, relu), true;
    case 512:
      return run<scalar_t, 512>(device, x, mlp, depthwise, relu), true;
    default:
      return false;
  }
}

}  // namespace

void conv_mlp_block_cuda(Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                         const Tensor& norm_bias, double eps, const Tensor& fc1_weight,
                         const Tensor& fc1_bias, bool relu, const Tensor& dwconv_weight,
                         const Tensor& dwconv_bias, const Tensor& fc2_weight,
                         const Tensor& fc2_bias) {
  const MlpShape s = check_conv_mlp_block(x, H, W, norm_weight, norm_bias, fc1_weight, fc1_bias,
                                          dwconv_weight, dwconv_bias, fc2_weight, fc2_bias);
  if (s.rows == 0) {
    return;
  }
  const Device device("conv_mlp_block_", x);
  bool done = false;
  if (have_packed_kernel(device, x, {fc1_weight, fc2_weight}) && is_aligned(x) &&
      s.hidden % kLayersDepth == 0 && s.hidden <= INT32_MAX / 9 &&
      depthwise_lanes(s.rows / (H * W), H, W, s.hidden) <= INT32_MAX) {
    const MlpParameters parameters(norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight,
                                   fc2_bias);
    const Vector dwconv_w(dwconv_weight), dwconv_b(dwconv_bias);
    const MlpBlockArgs mlp = parameters.args(x, s, eps);
    DepthwiseArgs depthwise{};
    depthwise.B = static_cast<int>(s.rows / (H * W));
    depthwise.H = static_cast<int>(H), depthwise.W = static_cast<int>(W);
    depthwise.C = static_cast<int>(s.hidden);
    depthwise.weight = dwconv_w.data(), depthwise.bias = dwconv_b.data();
    dispatch_16_bit(x.scalar_type(), [&](auto type) {
      done = dispatch_channels<decltype(type)>(device, x, s.C, mlp, depthwise, relu);
    });
  }
  if (!done) {
    conv_mlp_block_aten(x, H, W, norm_weight, norm_bias, eps, fc1_weight, fc1_bias, relu,
                        dwconv_weight, dwconv_bias, fc2_weight, fc2_bias);
  }
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("conv_mlp_block_", TORCH_BOX(&pvt::cuda::conv_mlp_block_cuda));
}
