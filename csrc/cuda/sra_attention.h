// Launches sra_attention().
#pragma once

#include "cuda/device_block.h"
#include "cuda/share.h"
#include "cuda/sra_attention_impl.h"

namespace pvt::cuda {

// Keys that stay in the shared memory of any device.
constexpr int kMaxStayingKeys = 256;
constexpr int kAttentionBlocks = 3;  // of a multiprocessor, so that they hide each other's waiting

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, kAttentionBlocks)
    sra_attention_kernel(SraAttentionArgs args) {
  DeviceBlock<Config::kWarps> block;
  sra_attention<Config>(block, args);
}

// Of up to kMaxStayingKeys keys. Sets args.parts.
template <class scalar_t, int kHeadDim>
void run_sra_attention(const Device& device, int64_t B, SraAttentionArgs args) {
  using Config = SraAttentionConfig<scalar_t, kHeadDim, /*kWarps=*/4>;
  const int64_t most = (args.N + Config::kRows - 1) / Config::kRows;
  args.parts = parts_of(device, B * args.heads, most, kAttentionBlocks);
  launch<sra_attention_kernel<Config>>(device, B * args.heads * args.parts, Config::kWarps * kLanes,
                                       Config::shared_bytes(args.kv.blocks()), args,
                                       Config::shared_bytes(kMaxStayingKeys / kKeys));
}

}  // namespace pvt::cuda
