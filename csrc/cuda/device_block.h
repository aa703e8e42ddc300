// A block of the GPU: warps that share memory and wait for each other.
#pragma once

#include "cuda/begin_kernel.h"
#include "cuda/device_warp.h"

namespace pvt::cuda {

extern __shared__ __align__(1024) char shared_memory[];

template <int kWarps>
struct DeviceBlock {
  using Warp = DeviceWarp;
  static constexpr int kThreads = kWarps * kLanes;

  PVT_DEVICE DeviceBlock() { begin_kernel(); }

  static PVT_DEVICE int64_t index() { return blockIdx.x; }
  static PVT_DEVICE int64_t count() { return gridDim.x; }
  static PVT_DEVICE int warp() { return static_cast<int>(threadIdx.x) / kLanes; }
  static PVT_DEVICE char* shared() { return shared_memory; }
  static PVT_DEVICE void sync() { __syncthreads(); }

  // Calls run(thread) for this thread, 0 .. kThreads - 1.
  template <class Run>
  static PVT_DEVICE void each_thread(const Run& run) {
    run(static_cast<int>(threadIdx.x));
  }

  // Starts a copy of 16 bytes to shared memory; zeros if not `valid`. Part of the group that the
  // next commit() closes.
  static PVT_DEVICE void copy(char* to, const void* from, bool valid = true) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int size = valid ? kVector : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(from), "r"(size)
                 : "memory");
  }
  // The same of 4 bytes.
  static PVT_DEVICE void copy_word(char* to, const void* from) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" : : "r"(address), "l"(from) : "memory");
  }
  // The same of kBytes that lie in one piece, by all threads.
  template <int kBytes>
  static PVT_DEVICE void copy_piece(char* to, const char* from) {
    const int mine = static_cast<int>(threadIdx.x) * kVector;
    copy_from<kBytes, 0>(static_cast<unsigned>(__cvta_generic_to_shared(to + mine)), from + mine,
                         mine);
  }
  static PVT_DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

  // Waits until all but the last kPending groups of this thread have arrived.
  template <int kPending>
  static PVT_DEVICE void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
  }

 private:
  // A thread's vectors, from kOffset on. Offsets are part of the instructions: as sums they would
  // take two or three for each copy, or registers from one chunk to the next.
  template <int kBytes, int kOffset>
  static PVT_DEVICE void copy_from(unsigned to, const char* from, int mine) {
    if constexpr (kOffset < kBytes) {
      constexpr int kPass = kThreads * kVector;
      if (kOffset + kPass <= kBytes || kOffset + mine < kBytes) {
        asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;"
                     :
                     : "r"(to), "l"(from), "n"(kOffset)
                     : "memory");
      }
      copy_from<kBytes, kOffset + kPass>(to, from, mine);
    }
  }
};

}  // namespace pvt::cuda
