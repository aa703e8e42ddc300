// patch_embed on the CPU: the convolution as a matrix product on patches that are gathered where
// they are, pixels or tokens, then LayerNorm and positions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/convolve.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/patch_embed_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
Tensor patch_embed_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                       const std::optional<Tensor>& position, int64_t kernel_size, int64_t stride,
                       int64_t padding) {
  const PatchShape s = check_patch_embed(x, weight, bias, norm_weight, norm_bias, position,
                                         kernel_size, stride, padding);
  if (!have_packed_kernel(x, {weight})) {
    return patch_embed_aten(x, weight, bias, norm_weight, norm_bias, eps, position, kernel_size,
                            stride, padding);
  }
  Tensor out = torch::stable::empty({s.B, s.out_H * s.out_W, s.C}, x.scalar_type());
  if (s.B == 0) {
    return out;
  }
  const Tensor packed = contiguous_of(weight);
  const Vector bias_(bias), norm_w(norm_weight), norm_b(norm_bias);
  PatchArgs args{};
  args.H = s.H, args.W = s.W, args.C_in = s.C_in;
  args.out_H = s.out_H, args.out_W = s.out_W, args.C_out = s.C;
  args.kernel_size = kernel_size, args.stride = stride, args.padding = padding;
  args.batch_stride = x.stride(0), args.channel_stride = x.stride(1);
  args.row_stride = x.stride(2), args.column_stride = x.stride(3);
  args.conv = linear_args(packed, bias_);
  args.norm = {norm_w.data(), norm_b.data(), static_cast<float>(eps)};
  const Vector position_(position.value_or(bias));
  const float* pixels = static_cast<const float*>(x.const_data_ptr());
  const float* table = position.has_value() ? position_.data() : nullptr;
  float* tokens = static_cast<float*>(out.mutable_data_ptr());
  dispatch_packed_dtype(weight.scalar_type(), [&](auto type) {
    using scalar_t = decltype(type);
    const auto finish = PVT_BEST_LEVEL(finish_patches<scalar_t>);
    convolve<scalar_t>(args, s.B, pixels, [&](int64_t row, int64_t count, float* sums) {
      finish(args, sums, row, count, table, tokens);
    });
  });
  return out;
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("patch_embed", TORCH_BOX(&pvt::patch_embed_cpu));
}
