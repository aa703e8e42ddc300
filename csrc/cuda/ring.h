// Chunks of weights or keys on their way through shared memory: the only place where warps wait for
// each other while they compute.
#pragma once

#include "cuda/device.h"

namespace pvt::cuda {

// kSlots slots, in which chunk i + kSlots - 1 arrives while chunk i is used.
//   copy(chunk, slot): starts the copy of a chunk, by all threads of the block
//   use(chunk, slot): what a warp does with it
template <int kSlots, int kSlotBytes, class Block, class Copy>
class Ring {
 public:
  PVT_DEVICE Ring(Block& block, char* slots, int count, const Copy& copy)
      : block_(block), slots_(slots), count_(count), copy_(copy) {}

  // Starts the first copies.
  PVT_DEVICE void start() {
    PVT_NO_UNROLL for (int chunk = 0; chunk < kSlots - 1; ++chunk) begin_copy(chunk);
  }

  template <class Use>
  PVT_DEVICE void run(const Use& use) {
    PVT_NO_UNROLL for (int chunk = 0; chunk < count_; ++chunk) {
      block_.template wait<kSlots - 2>();  // for this thread's part of the chunk
      block_.sync();                       // for all parts, and until its last user is done
      begin_copy(chunk + kSlots - 1);
      use(chunk, static_cast<const char*>(slot(chunk)));
    }
  }

 private:
  PVT_DEVICE char* slot(int chunk) const { return slots_ + chunk % kSlots * kSlotBytes; }

  // A group is closed even if there is nothing left to copy: run() counts them.
  PVT_DEVICE void begin_copy(int chunk) {
    if (chunk < count_) {
      copy_(chunk, slot(chunk));
    }
    block_.commit();
  }

  Block& block_;
  char* slots_;
  int count_;
  const Copy& copy_;
};

}  // namespace pvt::cuda
