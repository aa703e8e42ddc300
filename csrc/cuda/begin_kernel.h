// Programmatic dependent launch: a kernel is launched while the one before it in its stream still
// runs, so that the GPU does not idle between the two.
#pragma once

#include <cstdint>

namespace pvt::cuda {

// Puts weights on their way from memory to the L2 cache, before begin_kernel(): that gives no
// value, so it does not matter whether they are still being written.   from, bytes: multiples of 16
__device__ __forceinline__ void prefetch_weights(const char* from, int64_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
                 :
                 : "l"(from), "r"(static_cast<uint32_t>(bytes)));
  }
#endif
}

// What every kernel does first. It waits until all that the kernels before it write is written, and
// then lets the next one be launched, which waits in the same place: launch() relies on it.
__device__ __forceinline__ void begin_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether begin_kernel() waits in code for a compute capability, 90 for 9.0.
inline bool waits_for_kernel_before(int capability) {
  return capability >= 90;
}

}  // namespace pvt::cuda
