// mlp_block_ on CUDA: which tokens have a kernel, in which shape it runs, its launch.
#include <torch/csrc/stable/library.h>

#include "aten/kernels.h"
#include "cuda/mlp_layers.h"
#include "cuda/mlp_warpgroup_impl.h"

namespace pvt::cuda {
namespace {

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1) mlp_block_kernel(MlpBlockArgs args) {
  DeviceBlock<Config::kWarps> block;
  mlp_block<Config>(block, args);
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    mlp_block_staying_kernel(MlpBlockArgs args) {
  DeviceBlock<Config::kWarps> block;
  mlp_block_staying<Config>(block, args);
}

// ---- the hidden layer in registers, one kernel: up to 256 channels ----

// Two tiles of rows per warp halve the reads of weights from shared memory, as long as sums and
// tokens of both fit into a thread's 255 registers. Above 256 channels those of one tile do not.
template <class scalar_t, int C>
using Passing = MlpBlockConfig<scalar_t, C, /*kTiles=*/C <= 128 ? 2 : 1, /*kWarps=*/8,
                               /*kHidden=*/C <= 64 ? 64 : 32, /*kSlots=*/C <= 160 ? 3 : 2>;

// Up to 64 channels the weights of 512 hidden ones fit into the shared memory of some devices.
template <class scalar_t, int C>
using Staying = MlpBlockConfig<scalar_t, C, /*kTiles=*/2, /*kWarps=*/8, /*kHidden=*/64,
                               /*kSlots=*/8>;

template <class scalar_t, int C>
void run_block(const Device& device, int64_t blocks, const MlpBlockArgs& args) {
  using Config = Passing<scalar_t, C>;
  constexpr int kThreads = Config::kWarps * kLanes;
  if constexpr (C <= 64) {
    using Config = Staying<scalar_t, C>;
    constexpr int kShared = Config::kSlots * Config::kSlotBytes;
    const int64_t at_once = device.multiprocessors();
    if (args.hidden <= Config::kSlots * Config::kHidden && kShared <= device.shared_limit() &&
        blocks > at_once) {
      return launch<mlp_block_staying_kernel<Config>>(device, at_once, kThreads, kShared, args);
    }
  }
  launch<mlp_block_kernel<Config>>(device, blocks, kThreads, Config::kSlots * Config::kSlotBytes,
                                   args);
}

// ---- the same for warpgroups: 64 and 128 channels ----

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    mlp_warpgroup_kernel(MlpWarpgroupArgs args) {
  with_warpgroups<Config::kWarps>([&](auto& block) { mlp_warpgroup<Config>(block, args); });
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    mlp_warpgroup_staying_kernel(MlpWarpgroupArgs args) {
  with_warpgroups<Config::kWarps>([&](auto& block) { mlp_warpgroup_staying<Config>(block, args); });
}

// As many warps as registers allow: warpgroups that compute GELU beside one that multiplies.
template <class scalar_t, int C>
using Warpgroups = MlpWarpgroupConfig<scalar_t, C, /*kWarps=*/C == 64 ? 16 : 8,
                                      /*kSlots=*/C == 64 ? 8 : 6>;

template <class scalar_t, int C>
void run_warpgroups(const Device& device, const Tensor& x, const MlpBlockArgs& mlp) {
  using Config = Warpgroups<scalar_t, C>;
  const WeightBlocks<2> blocks(device, x,
                               {{mlp.fc1_weight, mlp.hidden, C, Follow::kInputs},
                                {mlp.fc2_weight, C, mlp.hidden, Follow::kColumns}});
  const MlpWarpgroupArgs args{mlp, blocks.data(0), blocks.data(1)};
  constexpr int kThreads = Config::kWarps * kLanes;
  const int64_t tiles = (mlp.rows + Config::kRows - 1) / Config::kRows;
  if constexpr (C == 64) {
    if (mlp.hidden <= Config::kSlots * kBlock) {
      return launch<mlp_warpgroup_staying_kernel<Config>>(
          device, std::min<int64_t>(tiles, device.multiprocessors()), kThreads,
          Config::kSharedBytes, args);
    }
  }
  launch<mlp_warpgroup_kernel<Config>>(device, tiles, kThreads, Config::kSharedBytes, args);
}

// ---- the hidden layer in memory, between two kernels ----

template <class scalar_t, int C>
void run_layers(const Device& device, const Tensor& x, const MlpBlockArgs& args) {
  constexpr bool kMany = C > 256;
  const Tensor hidden = torch::stable::new_empty(x, {args.rows, args.hidden});
  const MlpLayers<scalar_t, C, kMany> layers(device, x, args);
  layers.template fc1<Then::kGelu>(hidden.mutable_data_ptr());
  layers.fc2(hidden.const_data_ptr());
}

// ---- which of them ----
//
// One kernel moves nothing but tokens; but its blocks are large, and few rows leave most of a GPU
// idle: the 784 tokens of one image at 128 channels are four blocks. Two kernels share columns out
// as well. On an H200 they take a quarter of its time for 7 blocks, 1.5 of it for 98 and twice for
// 392; the limit between is by the operations and bytes of both.
bool fills(const Device& device, int64_t blocks) {
  return 3 * blocks >= device.multiprocessors();
}

// Measured on an H200: warpgroups are the fastest from 16 images of 224 x 224 on. At 64 channels
// GELU takes longer than the products, and wants all multiprocessors.
template <class scalar_t, int C>
bool are_for_one_kernel(const Device& device, const MlpBlockArgs& args) {
  constexpr double kShare = C == 64 ? 1.25 : 0.5;
  const int64_t blocks = args.rows / Warpgroups<scalar_t, C>::kRows;
  return args.hidden % kBlock == 0 && has_warpgroups(device) &&
         static_cast<double>(blocks) >= kShare * device.multiprocessors();
}

template <class scalar_t, int C>
bool run(const Device& device, const Tensor& x, const MlpBlockArgs& args) {
  const bool has_layers = args.hidden % kLayersDepth == 0;
  if constexpr (C == 64 || C == 128) {
    if (are_for_one_kernel<scalar_t, C>(device, args)) {
      return run_warpgroups<scalar_t, C>(device, x, args), true;
    }
  }
  if constexpr (C <= 256) {
    constexpr int64_t kRows = Passing<scalar_t, C>::kRows;
    const int64_t blocks = (args.rows + kRows - 1) / kRows;
    if (fills(device, blocks) || !has_layers) {
      return run_block<scalar_t, C>(device, blocks, args), true;
    }
  }
  return has_layers && (run_layers<scalar_t, C>(device, x, args), true);
}

// Runs kernels if there are some for so many channels.
template <class scalar_t>
bool dispatch_channels(const Device& device, const Tensor& x, int64_t C, const MlpBlockArgs& args) {
  switch (C) {
    case 32:
      return run<scalar_t, 32>(device, x, args);
    case 64:
      return run<scalar_t, 64>(device, x, args);
    case 128:
      return run<scalar_t, 128>(device, x, args);
    case 160:
      return run<scalar_t, 160>(device, x, args);
    case 256:
      return run<scalar_t, 256>(device, x, args);
    case 320:
      return run<scalar_t, 320>(device, x, args);
    case 512:
      return run<scalar_t, 512>(device, x, args);
    default:
      return false;
  }
}

}  // namespace

void mlp_block_cuda(Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                    const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                    const Tensor& fc2_bias) {
  const MlpShape s =
      check_mlp_block(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  if (s.rows == 0) {
    return;
  }
  const Device device("mlp_block_", x);
  bool done = false;
  if (have_packed_kernel(device, x, {fc1_weight, fc2_weight}) && is_aligned(x) &&
      s.hidden % 64 == 0 && s.hidden <= INT32_MAX) {
    const MlpParameters parameters(norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight,
                                   fc2_bias);
    const MlpBlockArgs args = parameters.args(x, s, eps);
    dispatch_16_bit(x.scalar_type(), [&](auto type) {
      done = dispatch_channels<decltype(type)>(device, x, s.C, args);
    });
  }
  if (!done) {
    mlp_block_aten(x, norm_weight, norm_bias, eps, fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  }
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("mlp_block_", TORCH_BOX(&pvt::cuda::mlp_block_cuda));
}
