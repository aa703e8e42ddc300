// Blocks that take turns, since they are more than run at once.
#pragma once

#include <cstdint>

namespace pvt::cuda {

// Into how many parts, 1 .. most, the work of each of `count` is divided so that all is done first.
//   places: for blocks that run at once, a block to a part
//   work: of each; every part is `start` longer than its share of it
inline int parts_done_first(int64_t places, int64_t count, int64_t most, int64_t work,
                            int64_t start) {
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t best = 1, least = INT64_MAX;
  for (int64_t parts = 1; parts <= most; ++parts) {
    const int64_t turns = divide_up(count * parts, places);
    const int64_t time = turns * (divide_up(work, parts) + start);
    if (time < least)
      best = parts, least = time;
  }
  return static_cast<int>(best);
}

}  // namespace pvt::cuda
