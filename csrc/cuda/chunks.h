// Chunks of weights or keys in shared memory: the only place where the warps of a block wait for
// each other while they compute. Both classes bring chunks 0 .. count - 1, and next() gives them
// one after the other.
//   copy(chunk, slot): starts the copy of a chunk, by all threads of the block
#pragma once

#include "cuda/device.h"

namespace pvt::cuda {

// Chunks pass once through kSlots slots: some arrive while kInUse are used.
template <int kSlots, int kSlotBytes, class Block, class Copy, int kInUse = 1>
class PassingChunks {
  static_assert(kSlots > kInUse, "one arrives while others are used");

 public:
  PVT_DEVICE PassingChunks(Block& block, int count, const Copy& copy)
      : block_(block), copy_(copy), count_(count) {
    PVT_NO_UNROLL for (int chunk = 0; chunk < kSlots - kInUse; ++chunk) begin_copy(chunk);
  }

  // The next chunk, which is there for a warp until its call after kInUse - 1 others.
  PVT_DEVICE const char* next() {
    block_.template wait<kSlots - kInUse - 1>();  // for this thread's part of the chunk
    block_.sync();  // for all parts, and until its slot's last users are done
    begin_copy(used_ + kSlots - kInUse);
    return slot(used_++);
  }

 private:
  PVT_DEVICE char* slot(int chunk) const { return block_.shared() + chunk % kSlots * kSlotBytes; }

  // A group is closed even if there is nothing left to copy: next() counts them.
  PVT_DEVICE void begin_copy(int chunk) {
    if (chunk < count_)
      copy_(chunk, slot(chunk));
    block_.commit();
  }

  Block& block_;
  const Copy& copy_;
  int count_, used_ = 0;
};

// All chunks fit and stay. They are given again and again, and nobody waits.
template <int kSlotBytes, class Block, class Copy>
class StayingChunks {
 public:
  PVT_DEVICE StayingChunks(Block& block, int count, const Copy& copy)
      : block_(block), count_(count) {
    PVT_NO_UNROLL for (int chunk = 0; chunk < count; ++chunk) {
      copy(chunk, block.shared() + chunk * kSlotBytes);
    }
    block.commit();
    block.template wait<0>();
    block.sync();
  }

  PVT_DEVICE const char* next() {
    const char* slot = block_.shared() + used_ * kSlotBytes;
    used_ = used_ + 1 == count_ ? 0 : used_ + 1;
    return slot;
  }

 private:
  Block& block_;
  int count_, used_ = 0;
};

}  // namespace pvt::cuda
