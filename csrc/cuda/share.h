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

// Parts, 1 .. most, of what each of `count` has to do, so that all is done first: where blocks are
// more than `places` they take turns, and beside its share of `work` each has `more` to do.
inline int parts_done_first(int64_t places, int64_t count, int64_t most, int64_t work,
                            int64_t more) {
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t best = 1, least = INT64_MAX;
  for (int64_t parts = 1; parts <= most; ++parts) {
    const int64_t time = up(count * parts, places) * (up(work, parts) + more);
    if (time < least)
      best = parts, least = time;
  }
  return static_cast<int>(best);
}

}  // namespace pvt::cuda
