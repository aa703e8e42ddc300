// Launches convolve() for one number of input channels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "cuda/convolve_impl.h"
#include "cuda/device_block.h"
#include "cuda/share.h"

namespace pvt::cuda {

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, 1) convolve_kernel(ConvolveArgs args) {
  DeviceBlock<Config::kWarps> block;
  convolve<Config>(block, args);
}

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

// Returns the sums, [args.splits, rows, C_out], and sets args.splits. kStrips: of 32 columns that a
// block has, a divisor of those of C_out.
template <class scalar_t, int C, int kStrips, bool kNorm>
Tensor run_convolution(const Device& device, const Tensor& like, ConvolveArgs& args) {
  using Config = ConvolveConfig<scalar_t, C, kStrips, kNorm, /*kWarps=*/4,
                                /*kDepth=*/C % 64 == 0 ? 64 : 32, /*kSlots=*/3>;
  const int64_t blocks =
      (args.rows + Config::kRows - 1) / Config::kRows * (args.C_out / Config::kColumns);
  const int64_t positions = int64_t{args.kernel_size} * args.kernel_size;
  const int64_t most = INT32_MAX / positions;  // the kernel multiplies both
  args.splits = parts_of(device, blocks, std::min(positions, most));
  const Tensor sums =
      torch::stable::new_empty(like, {args.splits, args.rows, args.C_out}, ScalarType::Float);
  args.sums = static_cast<float*>(sums.mutable_data_ptr());
  launch<convolve_kernel<Config>>(device, blocks * args.splits, Config::kWarps * kLanes,
                                  Config::kSharedBytes, args);
  return sums;
}

}  // namespace pvt::cuda
