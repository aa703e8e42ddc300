// Launches the convolution of patches up to their end: convolve(), and patch_norm() if need be.
#pragma once

#include "cuda/convolve.h"
#include "cuda/patch_norm_impl.h"

namespace pvt::cuda {

constexpr int kNormWarps = 8;

template <class scalar_t>
__global__ void __launch_bounds__(kNormWarps* kLanes) patch_norm_kernel(PatchNormArgs args) {
  DeviceBlock<kNormWarps> block;
  patch_norm<scalar_t>(block, args);
}

// args: with its end. kStrips: as run_convolution() takes it.
template <class scalar_t, int C, int kStrips>
void run_patches(const Device& device, const Tensor& like, ConvolveArgs args) {
  const Tensor sums = run_convolution<scalar_t, C, kStrips, false>(device, like, args);
  if (args.sums != nullptr) {
    const PatchNormArgs norm{args.sums, args.rows, args.splits, args.C_out, args.end};
    launch<patch_norm_kernel<scalar_t>>(device, (args.rows + kNormWarps - 1) / kNormWarps,
                                        kNormWarps * kLanes, 0, norm);
  }
}

}  // namespace pvt::cuda
