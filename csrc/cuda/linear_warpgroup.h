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

template <int kThreads>
__global__ void __launch_bounds__(kThreads) weight_blocks_kernel(WeightBlocksArgs args) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index < int64_t{args.columns} * args.depth / 8) {
    write_block_vector(args, index);
  }
}

// A packed weight [columns, depth] in blocks.
class WeightBlocks {
 public:
  // x: any tensor of its type on the device.
  WeightBlocks(const Device& device, const Tensor& x, const char* weight, int columns, int depth,
               Follow follow)
      : blocks_(torch::stable::new_empty(x, {int64_t{columns} * depth})) {
    constexpr int kThreads = 256;
    char* const data = static_cast<char*>(blocks_.mutable_data_ptr());
    const WeightBlocksArgs args{weight, data, columns, depth, follow};
    launch<weight_blocks_kernel<kThreads>>(
        device, (int64_t{columns} * depth / 8 + kThreads - 1) / kThreads, kThreads, 0, args);
  }
  const char* data() const { return static_cast<const char*>(blocks_.const_data_ptr()); }

 private:
  Tensor blocks_;
};

// ---- linear layers ----

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    staying_linear_kernel(WarpgroupLinearArgs args) {
#ifdef PVT_HAS_WARPGROUPS
  WarpgroupBlock<Config::kWarps> block;
  staying_linear<Config>(block, args);
#endif
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    passing_linear_kernel(WarpgroupLinearArgs args) {
#ifdef PVT_HAS_WARPGROUPS
  WarpgroupBlock<Config::kWarps> block;
  passing_linear<Config>(block, args);
#endif
}

// Of C inputs, after a LayerNorm. As many warps as there are registers for.
template <class scalar_t, int C, Then kThen>
using StayingLinear = StayingLinearConfig<scalar_t, C, kThen, /*kWarps=*/(C > 128 ? 8 : 12),
                                          /*kSlots=*/(C > 320 ? 3 : 5)>;

template <class scalar_t, int C, Then kThen>
void run_staying_linear(const Device& device, const Tensor& x, WarpgroupLinearArgs args) {
  using Config = StayingLinear<scalar_t, C, kThen>;
  const WeightBlocks blocks(device, x, args.weight, args.columns, C, Config::kFollow);
  args.weight = blocks.data();
  launch_linear<Config, staying_linear_kernel<Config>>(
      device, args, [&](int64_t tiles, int groups) {
        return parts_at_once(device, tiles, groups, /*blocks_per_multiprocessor=*/1);
      });
}

// To C columns.
template <class scalar_t, int C, Then kThen>
using PassingLinear = PassingLinearConfig<scalar_t, kThen,
                                          /*kBlocks=*/
                                          (C == 320  ? 5
                                           : C > 256 ? 4
                                                     : C / kBlock),
                                          /*kWarps=*/(C >= 256 ? 8 : 12), /*kSlots=*/4>;

template <class scalar_t, int C, Then kThen>
void run_passing_linear(const Device& device, const Tensor& x, WarpgroupLinearArgs args) {
  using Config = PassingLinear<scalar_t, C, kThen>;
  const WeightBlocks blocks(device, x, args.weight, C, args.depth, Config::kFollow);
  args.weight = blocks.data(), args.columns = C;
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
