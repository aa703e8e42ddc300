// Launches convolve_warpgroup() and reduce_warpgroup().
#pragma once

#include "cuda/convolve_warpgroup_impl.h"
#include "cuda/linear_warpgroup.h"

namespace pvt::cuda {

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    convolve_warpgroup_kernel(ConvolveArgs args) {
  with_warpgroups<Config::kWarps>([&](auto& block) { convolve_warpgroup<Config>(block, args); });
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    reduce_warpgroup_kernel(ReduceArgs args) {
  with_warpgroups<Config::kWarps>([&](auto& block) { reduce_warpgroup<Config>(block, args); });
}

// All columns of a patch where registers hold its sums, else 256 of them.
template <class scalar_t, int C, int C_out, bool kNorm>
using WarpgroupConvolution =
    WarpgroupConvolveConfig<scalar_t, C, kNorm, /*kBlocks=*/C_out <= 320 ? C_out / kBlock : 4,
                            /*kWarps=*/8, /*kSlots=*/C_out == 64 ? 6 : 4>;

template <class scalar_t, int C, int C_out, bool kNorm>
bool are_patches_for_warpgroups(const Device& device, const ConvolveArgs& args) {
  using Config = WarpgroupConvolution<scalar_t, C, C_out, kNorm>;
  const int64_t blocks = args.rows / Config::kRows * (C_out / Config::kColumns);
  return has_warpgroups(device) && 2 * blocks >= device.multiprocessors();
}

// The patches of args: as run_convolution().
template <class scalar_t, int C, int C_out>
Tensor run_warpgroup_convolution(const Device& device, const Tensor& like, ConvolveArgs& args) {
  using Config = WarpgroupConvolution<scalar_t, C, C_out, false>;
  const int depth = args.kernel_size * args.kernel_size * C;
  const WeightBlocks<1> blocks(device, like, {{args.weight, C_out, depth, Config::kFollow}});
  args.weight = blocks.data(), args.splits = 1;
  const bool finishes = C_out == Config::kColumns;
  const Tensor sums =
      torch::stable::new_empty(like, {finishes ? 0 : args.rows, C_out}, ScalarType::Float);
  args.sums = finishes ? nullptr : static_cast<float*>(sums.mutable_data_ptr());
  const int64_t tiles = (args.rows + Config::kRows - 1) / Config::kRows;
  launch<convolve_warpgroup_kernel<Config>>(device, tiles * (C_out / Config::kColumns),
                                            Config::kWarps * kLanes, Config::kSharedBytes, args);
  return sums;
}

// Keys and values of args, from tokens.
template <class scalar_t, int C>
void run_warpgroup_reduction(const Device& device, const Tensor& like, ReduceArgs args) {
  using Config = WarpgroupConvolution<scalar_t, C, C, true>;
  const int depth = args.convolution.kernel_size * args.convolution.kernel_size * C;
  const WeightBlocks<2> blocks(device, like,
                               {{args.convolution.weight, C, depth, Config::kFollow},
                                {args.linear.weight, args.linear.columns, C, Follow::kInputs}});
  args.convolution.weight = blocks.data(0), args.linear.weight = blocks.data(1);
  const int64_t tiles = (args.linear.rows + Config::kRows - 1) / Config::kRows;
  launch<reduce_warpgroup_kernel<Config>>(device, tiles, Config::kWarps * kLanes,
                                          Config::kSharedBytes, args);
}

}  // namespace pvt::cuda
