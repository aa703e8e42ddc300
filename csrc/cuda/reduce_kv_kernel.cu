// reduce_kv on CUDA: which tokens have kernels, and their launch. On a smaller grid there are two,
// the convolution of normalised tokens, and keys and values of what it leaves; or one of
// warpgroups, which goes from tokens to keys and values.
#include <torch/csrc/stable/library.h>

#include "aten/kernels.h"
#include "cuda/convolve.h"
#include "cuda/convolve_warpgroup.h"
#include "cuda/linear_warpgroup.h"
#include "cuda/packed.h"

namespace pvt::cuda {
namespace {

template <class scalar_t, int C>
void run_reduction(const Device& device, const Tensor& x, ConvolveArgs convolution,
                   LinearArgs args) {
  if constexpr (C % kBlock == 0) {
    if (are_patches_for_warpgroups<scalar_t, C, C, true>(device, convolution)) {
      return run_warpgroup_reduction<scalar_t, C>(device, x, {convolution, args});
    }
  }
  const Tensor sums = run_convolution<scalar_t, C, wide_strips(C), true>(device, x, convolution);
  args.x = sums.const_data_ptr();
  args.splits = convolution.splits;
  run_linear<scalar_t, C, Source::kSums, Then::kStore>(device, args);
}

// Many rows: two blocks to a multiprocessor, and each weight that is copied meets 128 rows.
template <class scalar_t>
using ManyRows =
    StreamedLinearConfig<scalar_t, /*kNorm=*/true, Then::kStore, /*kTiles=*/2, /*kStrips=*/4,
                         /*kWarps=*/4, /*kDepth=*/32, /*kSlots=*/4>;

template <class scalar_t, int C>
void run_of_tokens(const Device& device, const Tensor& x, const LinearArgs& args) {
  using Many = ManyRows<scalar_t>;
  if (args.rows / Many::kRows * (args.columns / Many::kColumns) < device.multiprocessors()) {
    return run_linear<scalar_t, C, Source::kTokens, Then::kStore>(device, args);
  }
  const StreamedLinearArgs many = streamed<C>(args);
  if (has_rows_for_warpgroups<scalar_t, C>(device, args.rows, 0.5)) {
    return run_staying_linear<scalar_t, C, Then::kStore>(device, x, many);
  }
  launch_linear<Many, streamed_linear_kernel<Many>>(device, many, [&](int64_t tiles, int groups) {
    return parts_at_once(device, tiles, groups, kBlocksPerMultiprocessor);
  });
}

// Runs kernels if there are some for so many channels.
template <class scalar_t>
bool dispatch_channels(const Device& device, const Tensor& x, int64_t C, bool reduces,
                       const ConvolveArgs& convolution, const LinearArgs& args) {
  switch (reduces ? C : -C) {
    case 32:
      return run_reduction<scalar_t, 32>(device, x, convolution, args), true;
    case 64:
      return run_reduction<scalar_t, 64>(device, x, convolution, args), true;
    case 128:
      return run_reduction<scalar_t, 128>(device, x, convolution, args), true;
    case 160:
      return run_reduction<scalar_t, 160>(device, x, convolution, args), true;
    case 320:
      return run_reduction<scalar_t, 320>(device, x, convolution, args), true;
    case -256:
      return run_of_tokens<scalar_t, 256>(device, x, args), true;
    case -512:
      return run_of_tokens<scalar_t, 512>(device, x, args), true;
    default:
      return false;
  }
}

}  // namespace

Tensor reduce_kv_cuda(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                      const Tensor& norm_bias, double eps, const std::optional<Tensor>& sr_weight,
                      const std::optional<Tensor>& sr_bias,
                      const std::optional<Tensor>& sr_norm_weight,
                      const std::optional<Tensor>& sr_norm_bias, double sr_eps,
                      const Tensor& kv_weight, const Tensor& kv_bias, int64_t sr_ratio) {
  const ReductionShape s =
      check_reduce_kv(x, H, W, norm_weight, norm_bias, sr_weight, sr_bias, sr_norm_weight,
                      sr_norm_bias, kv_weight, kv_bias, sr_ratio);
  const Device device("reduce_kv", x);
  const bool reduces = sr_weight.has_value();
  if (have_packed_kernel(device, x, {kv_weight, sr_weight.value_or(kv_weight)}) &&
      s.H <= INT32_MAX && s.W <= INT32_MAX) {
    Tensor out = torch::stable::new_empty(x, {s.B, s.kv_len(), 2 * s.C});
    if (s.B * s.kv_len() == 0) {
      return out;
    }
    const Tensor tokens = dense(x);
    const Vector norm_w(norm_weight), norm_b(norm_bias), kv_b(kv_bias);
    const Vector sr_b(sr_bias.value_or(kv_bias)), sr_norm_w(sr_norm_weight.value_or(norm_weight)),
        sr_norm_b(sr_norm_bias.value_or(norm_bias));
    const Weight kv(kv_weight), sr(sr_weight.value_or(kv_weight));
    ConvolveArgs convolution = reduction_args(s, tokens);
    convolution.norm_weight = norm_w.data(), convolution.norm_bias = norm_b.data();
    convolution.eps = static_cast<float>(eps);
    convolution.weight = sr.data();
    LinearArgs args{};
    args.x = tokens.const_data_ptr();
    args.rows = s.B * s.kv_len();
    args.sums_bias = sr_b.data();
    args.norm_weight = reduces ? sr_norm_w.data() : norm_w.data();
    args.norm_bias = reduces ? sr_norm_b.data() : norm_b.data();
    args.eps = static_cast<float>(reduces ? sr_eps : eps);
    args.weight = kv.data(), args.bias = kv_b.data();
    args.out = out.mutable_data_ptr(), args.columns = static_cast<int>(2 * s.C);
    bool done = false;
    dispatch_16_bit(x.scalar_type(), [&](auto type) {
      done = dispatch_channels<decltype(type)>(device, x, s.C, reduces, convolution, args);
    });
    if (done) {
      return out;
    }
  }
  return reduce_kv_aten(x, H, W, norm_weight, norm_bias, eps, sr_weight, sr_bias, sr_norm_weight,
                        sr_norm_bias, sr_eps, kv_weight, kv_bias, sr_ratio);
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("reduce_kv", TORCH_BOX(&pvt::cuda::reduce_kv_cuda));
}
