// attention_block_ on CUDA: which tokens have a kernel, in which shape it runs, its launch.
#include <torch/csrc/stable/library.h>

#include "aten/kernels.h"
#include "cuda/attention.h"
#include "cuda/attention_block_impl.h"
#include "cuda/device_block.h"

namespace pvt::cuda {
namespace {

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    attention_block_kernel(AttentionBlockArgs args) {
  DeviceBlock<Config::kWarps> block;
  attention_block<Config>(block, args);
}

template <class Config>
void run(const Device& device, int64_t B, AttentionBlockArgs args) {
  args.blocks_per_image = static_cast<int>((args.N + Config::kRows - 1) / Config::kRows);
  launch<attention_block_kernel<Config>>(device, B * args.blocks_per_image, Config::kWarps * kLanes,
                                         Config::kSharedBytes, args);
}

// More warps share more of the weights' way from memory; fewer give more blocks.
template <class scalar_t, int C, int kHeadDim>
void run_few_channels(const Device& device, int64_t B, const AttentionBlockArgs& args) {
  using Wide =
      AttentionBlockConfig<scalar_t, C, kHeadDim, /*kWarps=*/8, /*kDepth=*/C, /*kSlots=*/3>;
  using Narrow =
      AttentionBlockConfig<scalar_t, C, kHeadDim, /*kWarps=*/4, /*kDepth=*/C, /*kSlots=*/3>;
  const bool many = B * args.N >= 2 * int64_t{Wide::kRows} * device.multiprocessors();
  return many ? run<Wide>(device, B, args) : run<Narrow>(device, B, args);
}

// What is resident in shared memory, tokens and slots, is less than 99 KB, which every device has.
template <class scalar_t, int C, int kHeadDim, int kDepth>
void run_many_channels(const Device& device, int64_t B, const AttentionBlockArgs& args) {
  using Config = AttentionBlockConfig<scalar_t, C, kHeadDim, /*kWarps=*/4, kDepth, /*kSlots=*/2>;
  static_assert(Config::kSharedBytes <= 99 * 1024, "what every device has");
  run<Config>(device, B, args);
}

// Runs a kernel if there is one for so many channels and heads.
template <class scalar_t>
bool dispatch_heads(const Device& device, int64_t B, int64_t C, int64_t head_dim,
                    const AttentionBlockArgs& args) {
  switch (C * 1000 + head_dim) {
    case 32032:
      return run_few_channels<scalar_t, 32, 32>(device, B, args), true;
    case 64032:
      return run_few_channels<scalar_t, 64, 32>(device, B, args), true;
    case 160032:
      return run_many_channels<scalar_t, 160, 32, 160>(device, B, args), true;
    case 256032:
      return run_many_channels<scalar_t, 256, 32, 128>(device, B, args), true;
    case 64064:
      return run_few_channels<scalar_t, 64, 64>(device, B, args), true;
    case 128064:
      return run_few_channels<scalar_t, 128, 64>(device, B, args), true;
    case 320064:
      return run_many_channels<scalar_t, 320, 64, 160>(device, B, args), true;
    case 512064:
      return run_many_channels<scalar_t, 512, 64, 128>(device, B, args), true;
    default:
      return false;
  }
}

}  // namespace

void attention_block_cuda(Tensor& x, const Tensor& kv, const Tensor& norm_weight,
                          const Tensor& norm_bias, double eps, const Tensor& q_weight,
                          const Tensor& q_bias, const Tensor& proj_weight, const Tensor& proj_bias,
                          int64_t num_heads, double scale) {
  const SraShape s = check_attention_block(x, kv, norm_weight, norm_bias, q_weight, q_bias,
                                           proj_weight, proj_bias, num_heads);
  if (s.B == 0 || s.N == 0) {
    return;
  }
  const Device device("attention_block_", x);
  bool done = false;
  if (have_packed_kernel(device, x, {q_weight, proj_weight}) && is_aligned(x) && s.N <= INT32_MAX &&
      s.kv_len <= INT32_MAX) {
    const Vector norm_w(norm_weight), norm_b(norm_bias), q_b(q_bias), proj_b(proj_bias);
    const Weight q(q_weight), proj(proj_weight);
    const Tensor keys = vector_rows(kv);
    const AttentionBlockArgs args{x.mutable_data_ptr(),
                                  s.N,
                                  norm_w.data(),
                                  norm_b.data(),
                                  static_cast<float>(eps),
                                  q.data(),
                                  q_b.data(),
                                  key_values(keys),
                                  proj.data(),
                                  proj_b.data(),
                                  log2_scale(scale),
                                  /*blocks_per_image=*/0};
    dispatch_16_bit(x.scalar_type(), [&](auto type) {
      done = dispatch_heads<decltype(type)>(device, s.B, s.C, s.head_dim, args);
    });
  }
  if (!done) {
    attention_block_aten(x, kv, norm_weight, norm_bias, eps, q_weight, q_bias, proj_weight,
                         proj_bias, num_heads, scale);
  }
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("attention_block_", TORCH_BOX(&pvt::cuda::attention_block_cuda));
}
