// patch_embed on CUDA: which maps have kernels, and their launch: the convolution of tokens, and
// the norm of what it leaves. Images, of three channels, are ATen's.
#include <torch/csrc/stable/library.h>

#include "aten/kernels.h"
#include "cuda/convolve.h"
#include "cuda/packed.h"
#include "cuda/patch_norm_impl.h"

namespace pvt::cuda {
namespace {

constexpr int kNormWarps = 8;

template <class scalar_t>
__global__ void __launch_bounds__(kNormWarps* kLanes) patch_norm_kernel(PatchNormArgs args) {
  DeviceBlock<kNormWarps> block;
  patch_norm<scalar_t>(block, args);
}

template <class scalar_t, int C_in, int kStrips>
void run(const Device& device, const Tensor& x, ConvolveArgs convolution, PatchNormArgs args) {
  const Tensor sums = run_convolution<scalar_t, C_in, kStrips, false>(device, x, convolution);
  args.sums = static_cast<const float*>(sums.const_data_ptr());
  args.splits = convolution.splits;
  launch<patch_norm_kernel<scalar_t>>(device, (args.rows + kNormWarps - 1) / kNormWarps,
                                      kNormWarps * kLanes, 0, args);
}

// Runs kernels if there are some for so many channels.
template <class scalar_t>
bool dispatch_channels(const Device& device, const Tensor& x, int64_t C_in, int64_t C_out,
                       const ConvolveArgs& convolution, const PatchNormArgs& args) {
  switch (C_in * 1000 + C_out) {
    case 32064:
      return run<scalar_t, 32, 2>(device, x, convolution, args), true;
    case 64128:
      return run<scalar_t, 64, 4>(device, x, convolution, args), true;
    case 64160:
      return run<scalar_t, 64, 5>(device, x, convolution, args), true;
    case 128320:
      return run<scalar_t, 128, 5>(device, x, convolution, args), true;
    case 160256:
      return run<scalar_t, 160, 4>(device, x, convolution, args), true;
    case 320512:
      return run<scalar_t, 320, 4>(device, x, convolution, args), true;
    default:
      return false;
  }
}

// Whether x [B, C, H, W] is tokens seen as a feature map, whose channels can be read 16 bytes at a
// time.
bool is_token_map(const Tensor& x) {
  constexpr int64_t kNumbers = kVector / 2;
  return is_aligned(x) && x.stride(1) == 1 && x.stride(0) % kNumbers == 0 &&
         x.stride(2) % kNumbers == 0 && x.stride(3) % kNumbers == 0;
}

}  // namespace

Tensor patch_embed_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                        const std::optional<Tensor>& position, int64_t kernel_size, int64_t stride,
                        int64_t padding) {
  const PatchShape s = check_patch_embed(x, weight, bias, norm_weight, norm_bias, position,
                                         kernel_size, stride, padding);
  const Device device("patch_embed", x);
  if (s.B > 0 && have_packed_kernel(device, x, {weight}) && is_token_map(x) &&
      s.H + 2 * padding <= INT32_MAX && s.W + 2 * padding <= INT32_MAX && stride <= INT32_MAX) {
    Tensor out = torch::stable::new_empty(x, {s.B, s.out_H * s.out_W, s.C});
    const Weight packed(weight);
    const Vector conv_bias(bias), norm_w(norm_weight), norm_b(norm_bias);
    const Vector table(position.value_or(bias));
    ConvolveArgs convolution{};
    convolution.x = x.const_data_ptr();
    convolution.image_bytes = x.stride(0) * 2;
    convolution.row_bytes = x.stride(2) * 2, convolution.column_bytes = x.stride(3) * 2;
    convolution.H = static_cast<int>(s.H), convolution.W = static_cast<int>(s.W);
    convolution.kernel_size = static_cast<int>(kernel_size);
    convolution.stride = static_cast<int>(stride), convolution.padding = static_cast<int>(padding);
    convolution.weight = packed.data();
    convolution.rows = s.B * s.out_H * s.out_W;
    convolution.out_H = static_cast<int>(s.out_H), convolution.out_W = static_cast<int>(s.out_W);
    convolution.C_out = static_cast<int>(s.C);
    PatchNormArgs args{};
    args.rows = convolution.rows, args.C = convolution.C_out;
    args.bias = conv_bias.data();
    args.norm_weight = norm_w.data(), args.norm_bias = norm_b.data();
    args.eps = static_cast<float>(eps);
    args.position = position.has_value() ? table.data() : nullptr;
    args.image_rows = s.out_H * s.out_W;
    args.out = out.mutable_data_ptr();
    bool done = false;
    dispatch_16_bit(x.scalar_type(), [&](auto type) {
      done = dispatch_channels<decltype(type)>(device, x, s.C_in, s.C, convolution, args);
    });
    if (done) {
      return out;
    }
  }
  return patch_embed_aten(x, weight, bias, norm_weight, norm_bias, eps, position, kernel_size,
                          stride, padding);
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("patch_embed", TORCH_BOX(&pvt::cuda::patch_embed_cuda));
}
