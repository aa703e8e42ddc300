// Launches what has products of warpgroups, after putting weights into blocks.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <string_view>

#include "cuda/device_warpgroup.h"
#include "cuda/linear.h"
#include "cuda/linear_warpgroup_impl.h"

namespace pvt::cuda {

// Whether the device has such products, and code for them was compiled. Devices newer than compute
// capability 9.0 have others.
inline bool has_warpgroups(const Device& device) {
  constexpr std::string_view kCompiled = PVT_CUDA_ARCHITECTURES;
  return kCompiled.find("9.0a") != std::string_view::npos && device.capability() == 90;
}

// ---- weights ----

// A packed weight [columns, depth], and the order of its blocks.
struct PackedWeight {
  const char* data;
  int columns, depth;
  Follow follow;
};

template <int kWeights>
struct AllWeightBlocksArgs {
  WeightBlocksArgs weights[kWeights];
};

template <int kWeights, int kThreads>
__global__ void __launch_bounds__(kThreads)
    weight_blocks_kernel(AllWeightBlocksArgs<kWeights> args) {
  begin_kernel();
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  PVT_UNROLL for (int i = 0; i < kWeights; ++i) {
    const int64_t vectors = block_vectors(args.weights[i]);
    if (0 <= index && index < vectors) {
      write_block_vector(args.weights[i], index);
    }
    index -= vectors;
  }
}

// The weights of an operator in blocks, put there by one kernel.
template <int kWeights>
class WeightBlocks {
 public:
  // x: any tensor of their type on the device.
  WeightBlocks(const Device& device, const Tensor& x, const PackedWeight (&weights)[kWeights])
      : blocks_(torch::stable::new_empty(x, {numbers(weights)})) {
    constexpr int kThreads = 256;
    AllWeightBlocksArgs<kWeights> args{};
    char* to = static_cast<char*>(blocks_.mutable_data_ptr());
    int64_t vectors = 0;
    for (int i = 0; i < kWeights; ++i) {
      const PackedWeight& weight = weights[i];
      args.weights[i] = {weight.data, to, weight.columns, weight.depth, weight.follow};
      data_[i] = to;
      to += int64_t{2} * weight.columns * weight.depth;
      vectors += block_vectors(args.weights[i]);
    }
    launch<weight_blocks_kernel<kWeights, kThreads>>(device, (vectors + kThreads - 1) / kThreads,
                                                     kThreads, 0, args);
  }
  const char* data(int weight = 0) const { return data_[weight]; }

 private:
  static int64_t numbers(const PackedWeight (&weights)[kWeights]) {
    int64_t sum = 0;
    for (const PackedWeight& weight : weights)
      sum += int64_t{weight.columns} * weight.depth;
    return sum;
  }

  Tensor blocks_;
  const char* data_[kWeights];
};

// ---- linear layers ----

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    staying_linear_kernel(WarpgroupLinearArgs args) {
  with_warpgroups<Config::kWarps>([&](auto& block) { staying_linear<Config>(block, args); });
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    passing_linear_kernel(WarpgroupLinearArgs args) {
  with_warpgroups<Config::kWarps>([&](auto& block) { passing_linear<Config>(block, args); });
}

// Of C inputs, after a LayerNorm. As many warps as there are registers for.
template <class scalar_t, int C, Then kThen>
using StayingLinear = StayingLinearConfig<scalar_t, C, kThen, /*kWarps=*/(C > 128 ? 8 : 12),
                                          /*kSlots=*/(C > 320 ? 3 : 5)>;

// The weight of args in blocks.
template <class scalar_t, int C, Then kThen>
void launch_staying_linear(const Device& device, const WarpgroupLinearArgs& args) {
  using Config = StayingLinear<scalar_t, C, kThen>;
  launch_linear<Config, staying_linear_kernel<Config>>(
      device, args, [&](int64_t tiles, int groups) {
        return parts_at_once(device, tiles, groups, /*blocks_per_multiprocessor=*/1);
      });
}

// A packed weight.
template <class scalar_t, int C, Then kThen>
void run_staying_linear(const Device& device, const Tensor& x, WarpgroupLinearArgs args) {
  const WeightBlocks<1> blocks(device, x, {{args.weight, args.columns, C, kStayingFollow}});
  args.weight = blocks.data();
  launch_staying_linear<scalar_t, C, kThen>(device, args);
}

// To C columns.
template <class scalar_t, int C, Then kThen>
using PassingLinear = PassingLinearConfig<scalar_t, kThen,
                                          /*kBlocks=*/
                                          (C == 320  ? 5
                                           : C > 256 ? 4
                                                     : C / kBlock),
                                          /*kWarps=*/(C >= 256 ? 8 : 12), /*kSlots=*/4>;

// The weight of args in blocks.
template <class scalar_t, int C, Then kThen>
void launch_passing_linear(const Device& device, WarpgroupLinearArgs args) {
  using Config = PassingLinear<scalar_t, C, kThen>;
  args.columns = C;
  const int64_t tiles = (args.rows + Config::kRows - 1) / Config::kRows;
  launch<passing_linear_kernel<Config>>(device, tiles * (C / Config::kColumns),
                                        Config::kWarps * kLanes, Config::kSharedBytes, args);
}

// Whether there are rows of C channels for `share` of the multiprocessors: fewer are faster in
// small blocks, which need no weights in blocks.
template <class scalar_t, int C>
bool has_rows_for_warpgroups(const Device& device, int64_t rows, double share) {
  using Config = PassingLinear<scalar_t, C, Then::kAdd>;
  const int64_t blocks = rows / Config::kRows * (C / Config::kColumns);
  return has_warpgroups(device) && static_cast<double>(blocks) >= share * device.multiprocessors();
}

}  // namespace pvt::cuda
