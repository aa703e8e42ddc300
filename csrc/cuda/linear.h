// Launches the kernels of a linear layer: linear(), streamed_linear(), and split_linear() and
// split_streamed_linear() of few rows.
#pragma once

#include "cuda/device_block.h"
#include "cuda/linear_impl.h"
#include "cuda/share.h"
#include "cuda/split_linear_impl.h"
#include "cuda/streamed_linear_impl.h"

namespace pvt::cuda {

// Packed weights of `depth` inputs, whose columns are shared out to the first blocks.
template <class Args>
PVT_DEVICE void prefetch_columns(const Args& args, int depth, int block_columns) {
  const int64_t begin = blockIdx.x * int64_t{block_columns}, left = args.columns - begin;
  if (left > 0) {
    prefetch_weights(args.weight + begin * depth * 2,
                     (left < block_columns ? left : block_columns) * (int64_t{2} * depth));
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, Config::kBlocks)
    linear_kernel(LinearArgs args) {
  prefetch_columns(args, Config::C, args.block_columns);
  DeviceBlock<Config::kWarps> block;
  linear<Config>(block, args);
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    streamed_linear_kernel(StreamedLinearArgs args) {
  DeviceBlock<Config::kWarps> block;
  streamed_linear<Config>(block, args);
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1) split_linear_kernel(LinearArgs args) {
  prefetch_columns(args, Config::C, Config::kColumns);
  DeviceBlock<Config::kWarps> block;
  split_linear<Config>(block, args);
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    split_streamed_linear_kernel(StreamedLinearArgs args) {
  prefetch_columns(args, args.depth, Config::kColumns);
  DeviceBlock<Config::kWarps> block;
  split_streamed_linear<Config>(block, args);
}

// The layer of tokens of C channels, for kernels that stream its weights.
template <int C>
StreamedLinearArgs streamed(const LinearArgs& args) {
  return {args.x,      args.rows, C,        args.norm_weight, args.norm_bias,    args.eps,
          args.weight, args.bias, args.out, args.columns,     args.block_columns};
}

// Into how many tiles blocks divide its rows, and into how many groups its columns.
template <class Config, class Args>
int64_t tiles_of(const Args& args) {
  return (args.rows + Config::kRows - 1) / Config::kRows;
}
template <class Config, class Args>
int groups_of(const Device& device, const Args& args) {
  check(args.columns % Config::kColumns == 0, device.op(), ": a kernel of ", Config::kColumns,
        " columns was asked for ", args.columns);
  return args.columns / Config::kColumns;
}

// Shares columns out too if rows alone do not fill the GPU: sets args.block_columns.
//   share(row groups, column groups): the parts of the columns
template <class Config, auto kKernel, class Args, class Share>
void launch_linear(const Device& device, Args args, const Share& share) {
  const int64_t tiles = tiles_of<Config>(args);
  const int groups = groups_of<Config>(device, args);
  const int parts = share(tiles, groups);
  args.block_columns = (groups + parts - 1) / parts * Config::kColumns;
  const int64_t blocks = tiles * ((args.columns + args.block_columns - 1) / args.block_columns);
  launch<kKernel>(device, blocks, Config::kWarps * kLanes, Config::kSharedBytes, args);
}

// ---- few rows ----

constexpr int kMostWays = 8;

// All weights of a block are on their way at once.
template <class scalar_t, int C, Source kSource, Then kThen>
using SplitLinear = SplitLinearConfig<scalar_t, C, kSource, kThen, /*kTiles=*/2,
                                      /*kWays=*/C >= 256 ? kMostWays : 4, /*kSlots=*/3>;
template <class scalar_t>
using SplitStreamed =
    SplitStreamedConfig<scalar_t, Then::kAdd, /*kTiles=*/2, kMostWays, /*kSlots=*/4>;

// Runs it if every block of it gets a multiprocessor, and returns whether it did.
template <class Config, auto kKernel, class Args>
bool try_split(const Device& device, const Args& args) {
  const int64_t blocks = tiles_of<Config>(args) * groups_of<Config>(device, args);
  if (blocks > device.multiprocessors()) {
    return false;
  }
  launch<kKernel>(device, blocks, Config::kWarps * kLanes, Config::kSharedBytes, args);
  return true;
}

// ---- any number of rows ----

template <class scalar_t, int C, Source kSource, Then kThen>
void run_linear(const Device& device, const LinearArgs& args) {
  if constexpr (C >= 128) {
    using Few = SplitLinear<scalar_t, C, kSource, kThen>;
    if (try_split<Few, split_linear_kernel<Few>>(device, args)) {
      return;
    }
  }
  constexpr int kDepth = C == 320 ? 160 : C > 160 ? 128 : C;
  using Config =
      LinearConfig<scalar_t, C, kSource, kThen, /*kWarps=*/4, kDepth, /*kSlots=*/C <= 128 ? 3 : 2>;
  launch_linear<Config, linear_kernel<Config>>(device, args, [&](int64_t tiles, int groups) {
    return parts_at_once(device, tiles, groups, Config::kBlocks);
  });
}

template <class Config>
void run_streamed_linear(const Device& device, const StreamedLinearArgs& args) {
  launch_linear<Config, streamed_linear_kernel<Config>>(
      device, args, [&](int64_t tiles, int groups) { return parts_of(device, tiles, groups); });
}

// x <- x + the layer of other rows, kDepth inputs a divisor of theirs: in small blocks, that there
// may be more of them.
template <class scalar_t, int kDepth>
void run_narrow_linear(const Device& device, const StreamedLinearArgs& args) {
  using Few = SplitStreamed<scalar_t>;
  if (!try_split<Few, split_streamed_linear_kernel<Few>>(device, args)) {
    run_streamed_linear<StreamedLinearConfig<scalar_t, /*kNorm=*/false, Then::kAdd, /*kTiles=*/1,
                                             /*kStrips=*/1, /*kWarps=*/4, kDepth, /*kSlots=*/4>>(
        device, args);
  }
}

}  // namespace pvt::cuda
