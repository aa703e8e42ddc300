// Launches the convolution of patches up to their end: convolve() or convolve_warpgroup(), and
// patch_norm() if need be.
#pragma once

#include "cuda/convolve.h"
#include "cuda/convolve_warpgroup.h"
#include "cuda/patch_norm_impl.h"

namespace pvt::cuda {

constexpr int kNormWarps = 8;

template <class scalar_t>
__global__ void __launch_bounds__(kNormWarps* kLanes) patch_norm_kernel(PatchNormArgs args) {
  DeviceBlock<kNormWarps> block;
  patch_norm<scalar_t>(block, args);
}

// args: with its end.
template <class scalar_t, int C, int C_out>
void run_patches(const Device& device, const Tensor& like, ConvolveArgs args) {
  const Tensor sums = [&] {  // and args.sums, null if rows are finished
    if constexpr (C % kBlock == 0 && C_out % kBlock == 0) {
      if (are_patches_for_warpgroups<scalar_t, C, C_out, false>(device, args)) {
        return run_warpgroup_convolution<scalar_t, C, C_out>(device, like, args);
      }
    }
    return run_convolution<scalar_t, C, wide_strips(C_out), false>(device, like, args);
  }();
  if (args.sums != nullptr) {
    const PatchNormArgs norm{args.sums, args.rows, args.splits, args.C_out, args.end};
    launch<patch_norm_kernel<scalar_t>>(device, (args.rows + kNormWarps - 1) / kNormWarps,
                                        kNormWarps * kLanes, 0, norm);
  }
}

}  // namespace pvt::cuda
