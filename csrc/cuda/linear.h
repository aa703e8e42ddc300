// Launches linear() and streamed_linear().
#pragma once

#include "cuda/device_block.h"
#include "cuda/linear_impl.h"
#include "cuda/share.h"
#include "cuda/streamed_linear_impl.h"

namespace pvt::cuda {

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, Config::kBlocks)
    linear_kernel(LinearArgs args) {
  DeviceBlock<Config::kWarps> block;
  linear<Config>(block, args);
}

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1)
    streamed_linear_kernel(StreamedLinearArgs args) {
  DeviceBlock<Config::kWarps> block;
  streamed_linear<Config>(block, args);
}

// The layer of tokens of C channels, for kernels that stream its weights.
template <int C>
StreamedLinearArgs streamed(const LinearArgs& args) {
  return {args.x,      args.rows, C,        args.norm_weight, args.norm_bias,    args.eps,
          args.weight, args.bias, args.out, args.columns,     args.block_columns};
}

// Shares columns out too if rows alone do not fill the GPU: sets args.block_columns.
//   share(row groups, column groups): the parts of the columns
template <class Config, auto kKernel, class Args, class Share>
void launch_linear(const Device& device, Args args, const Share& share) {
  const int64_t tiles = (args.rows + Config::kRows - 1) / Config::kRows;
  check(args.columns % Config::kColumns == 0, device.op(), ": a kernel of ", Config::kColumns,
        " columns was asked for ", args.columns);
  const int groups = args.columns / Config::kColumns;
  const int parts = share(tiles, groups);
  args.block_columns = (groups + parts - 1) / parts * Config::kColumns;
  const int64_t blocks = tiles * ((args.columns + args.block_columns - 1) / args.block_columns);
  launch<kKernel>(device, blocks, Config::kWarps * kLanes, Config::kSharedBytes, args);
}

template <class scalar_t, int C, Source kSource, Then kThen>
void run_linear(const Device& device, const LinearArgs& args) {
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

}  // namespace pvt::cuda
