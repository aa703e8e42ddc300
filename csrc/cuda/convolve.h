// Launches convolve() for one number of input channels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "checks.h"
#include "cuda/convolve_impl.h"
#include "cuda/device_block.h"
#include "cuda/share.h"

namespace pvt::cuda {

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, Config::kBlocks)
    convolve_kernel(ConvolveArgs args) {
  const ConvolvePart<Config> part(blockIdx.x, args);  // the weights of all: by the first patches
  PVT_UNROLL for (int panel = 0; panel < Config::kColumns / kPanel && part.first == 0; ++panel) {
    prefetch_weights(part.weight + panel * part.panel_bytes,
                     (part.end - part.begin) * int64_t{Config::C / 2 * kPanelLine});
  }
  DeviceBlock<Config::kWarps> block;
  convolve<Config>(block, args);
}

// Many patches: as many columns to a block as registers hold sums of, for few copies of weights.
// Two tiles of rows where beside these there are registers for them.
template <class scalar_t, int C, bool kNorm, int kStrips>
using WideConvolution =
    ConvolveConfig<scalar_t, C, kNorm, /*kTiles=*/!kNorm && kStrips <= 4 && C < 320 ? 2 : 1,
                   kStrips,
                   /*kWarps=*/4, /*kDepth=*/kNorm && C % 64 == 0 ? 64 : 32,
                   /*kSlots=*/kNorm && C % 64 == 0 ? 3 : 4>;

// Few patches: small blocks, that there may be more of them.
template <class scalar_t, int C, bool kNorm>
using NarrowConvolution =
    ConvolveConfig<scalar_t, C, kNorm, /*kTiles=*/1, /*kStrips=*/1, /*kWarps=*/4,
                   /*kDepth=*/C <= 128 ? C : (C % 64 == 0 ? 64 : 32), /*kSlots=*/4>;

// The convolution of a spatial reduction, whose windows lie side by side; norm and weight are left
// to set.   tokens: vector_rows() of x [B, H * W, C], which has to live as long
inline ConvolveArgs reduction_args(const ReductionShape& s, const Tensor& tokens) {
  ConvolveArgs args{};
  args.x = tokens.const_data_ptr();
  args.image_bytes = tokens.stride(0) * 2, args.column_bytes = tokens.stride(1) * 2;
  args.row_bytes = s.W * args.column_bytes;
  args.H = static_cast<int>(s.H), args.W = static_cast<int>(s.W);
  args.kernel_size = args.stride = static_cast<int>(s.sr_ratio);
  args.rows = s.B * s.kv_len();
  args.out_H = static_cast<int>(s.out_H()), args.out_W = static_cast<int>(s.out_W());
  args.C_out = static_cast<int>(s.C);
  return args;
}

// Every split is one more that the next kernel adds to what it has, while the positions of a split
// follow each other too: between these, 16 of the 64 positions of an 8 x 8 kernel.
inline int64_t most_splits(const ConvolveArgs& args) {
  const int64_t positions = int64_t{args.kernel_size} * args.kernel_size;
  const int64_t most = INT32_MAX / positions;  // the kernel multiplies both
  return std::min({positions, int64_t{2} * args.kernel_size, most});
}

// Strips that a block has of C_out columns if there are many patches.
constexpr int wide_strips(int C_out) {
  return C_out % 160 == 0 ? 5 : C_out >= 128 ? 4 : C_out / kStrip;
}

template <class Config>
int64_t blocks_of(const ConvolveArgs& args) {
  return (args.rows + Config::kRows - 1) / Config::kRows * (args.C_out / Config::kColumns);
}

template <class Config>
Tensor launch_convolution(const Device& device, const Tensor& like, ConvolveArgs& args) {
  const int64_t blocks = blocks_of<Config>(args);
  args.splits = parts_at_once(device, blocks, most_splits(args), Config::kBlocks);
  const bool finishes =
      args.end.out != nullptr && args.splits == 1 && args.C_out == Config::kColumns;
  const Tensor sums = torch::stable::new_empty(
      like, {finishes ? 0 : args.splits, args.rows, args.C_out}, ScalarType::Float);
  args.sums = finishes ? nullptr : static_cast<float*>(sums.mutable_data_ptr());
  launch<convolve_kernel<Config>>(device, blocks * args.splits, Config::kWarps * kLanes,
                                  Config::kSharedBytes, args);
  return sums;
}

// Returns the sums, [args.splits, rows, C_out], and sets args.splits and args.sums; sums is null if
// rows are finished, as args.end says, if that says where. kStrips: of 32 columns that a block has
// if there are many patches, a divisor of those of C_out.
template <class scalar_t, int C, int kStrips, bool kNorm>
Tensor run_convolution(const Device& device, const Tensor& like, ConvolveArgs& args) {
  using Wide = WideConvolution<scalar_t, C, kNorm, kStrips>;
  if (blocks_of<Wide>(args) * most_splits(args) >= device.multiprocessors()) {
    return launch_convolution<Wide>(device, like, args);
  }
  return launch_convolution<NarrowConvolution<scalar_t, C, kNorm>>(device, like, args);
}

}  // namespace pvt::cuda
