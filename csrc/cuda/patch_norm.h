// Launches patch_norm().
#pragma once

#include "cuda/device_block.h"
#include "cuda/launch.h"
#include "cuda/patch_norm_impl.h"

namespace pvt::cuda {

constexpr int kNormWarps = 8;

template <class scalar_t>
__global__ void __launch_bounds__(kNormWarps* kLanes) patch_norm_kernel(PatchNormArgs args) {
  DeviceBlock<kNormWarps> block;
  patch_norm<scalar_t>(block, args);
}

template <class scalar_t>
void run_patch_norm(const Device& device, const PatchNormArgs& args) {
  launch<patch_norm_kernel<scalar_t>>(device, (args.rows + kNormWarps - 1) / kNormWarps,
                                      kNormWarps * kLanes, 0, args);
}

}  // namespace pvt::cuda
