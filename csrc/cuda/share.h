// How many blocks work on a product: enough for every multiprocessor, no more than need be.
#pragma once

#include <algorithm>

#include "cuda/launch.h"

namespace pvt::cuda {

constexpr int64_t kBlocksPerMultiprocessor = 2;

// Parts of what `blocks` blocks would do alone, 1 .. most.
inline int parts_of(const Device& device, int64_t blocks, int64_t most,
                    int64_t blocks_per_multiprocessor = kBlocksPerMultiprocessor) {
  const int64_t wanted = blocks_per_multiprocessor * device.multiprocessors();
  return static_cast<int>(std::clamp<int64_t>((wanted + blocks - 1) / blocks, 1, most));
}

// As many parts as run at once: of one more, a few blocks would keep all others waiting.
inline int parts_at_once(const Device& device, int64_t blocks, int64_t most,
                         int64_t blocks_per_multiprocessor) {
  const int64_t room = blocks_per_multiprocessor * device.multiprocessors();
  return static_cast<int>(std::clamp<int64_t>(room / blocks, 1, most));
}

}  // namespace pvt::cuda
