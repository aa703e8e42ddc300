// A warp of a warpgroup on a CPU: the same operations as csrc/cuda/device_warpgroup.h. A product of
// 64 rows is one of 16 for each of its four warps.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "cuda/host_warp.h"
#include "cuda/weight_blocks.h"

namespace pvt::cuda {

struct HostWarpgroup : HostWarp {
  using Blocks = const char*;
  static Blocks blocks(const char* shared) { return shared; }
  static Blocks after(Blocks blocks, int bytes) { return blocks + bytes; }

  static void settle(Float (&)[4][4]) {}
  static void settle(Word (&)[2][4]) {}

  static void begin_products() { state().begun = true; }
  static void commit_products() { state().groups.emplace_back(); }
  // Here they happen, with what registers and shared memory hold now.
  template <int kPending>
  static void wait_products() {
    auto& groups = state().groups;
    while (groups.size() > kPending + 1) {  // the last one is open
      for (const auto& product : groups.front())
        product();
      groups.pop_front();
    }
    state().begun = false;
  }

  template <class scalar_t, bool kFresh>
  static void multiply_block(Float (&d0)[4][4], Float (&d1)[4][4], const Word (&a)[4], Blocks block,
                             int step) {
    if (!state().begun)
      throw std::runtime_error("a product is not begun");
    state().groups.back().push_back([&d0, &d1, &a, block, step] {
      for (int j = 0; j < kBlock / 8; ++j) {
        // mma's operand b: of lane 4 g + t inputs 2 t, 2 t + 1 and 8 more of column g
        Word b[2];
        for (int half = 0; half < 2; ++half) {
          for (int l = 0; l < kLanes; ++l) {
            const int row = 8 * j + l / 4, byte = l % 4 * 4;
            std::memcpy(&b[half][l], block + swizzled(row, 2 * step + half) + byte, 4);
          }
        }
        Float(&d)[4] = j < 4 ? d0[j] : d1[j - 4];
        const Float zeros[4];
        mma<scalar_t>(d, a, b[0], b[1], kFresh ? zeros : d);
      }
    });
  }

 private:
  struct State {
    bool begun = false;
    std::deque<std::vector<std::function<void()>>> groups{1};
  };
  static State& state() {
    thread_local State value;
    return value;
  }
};

}  // namespace pvt::cuda
