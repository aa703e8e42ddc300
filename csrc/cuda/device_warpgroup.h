// A warpgroup of the GPU: four warps that multiply together, wgmma of compute capability 9.0a.
#pragma once

#include "cuda/device_block.h"
#include "cuda/weight_blocks.h"

// Whether this is compiled for devices that have it.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define PVT_HAS_WARPGROUPS
#endif

namespace pvt::cuda {

struct DeviceWarpgroup : DeviceWarp {
  // Blocks of weights in shared memory: the word of their descriptor that says where they are, in
  // units of 16 bytes.
  using Blocks = uint32_t;
  static PVT_DEVICE Blocks blocks(const char* shared) {
    constexpr uint32_t kLeading = 1 << 16;  // not used with this swizzle
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    return kLeading | (address & 0x3ffff) >> 4;
  }
  static PVT_DEVICE Blocks after(Blocks blocks, int bytes) { return blocks + bytes / 16; }

  // What was computed stays where it is in the program, before or after a product.
  static PVT_DEVICE void settle(Float (&sums)[4][4]) {
    PVT_UNROLL for (int j = 0; j < 4; ++j) {
      PVT_UNROLL for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[j][i])::"memory");
    }
  }
  static PVT_DEVICE void settle(Word (&operand)[2][4]) {
    PVT_UNROLL for (int step = 0; step < 2; ++step) {
      PVT_UNROLL for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(operand[step][i])::"memory");
    }
  }
  static PVT_DEVICE void begin_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }
  // Those since the last one are a group.
  static PVT_DEVICE void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  // Waits for all but the last kPending groups.
  template <int kPending>
  static PVT_DEVICE void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  }

  // d [16, 64] += a [16, 16] b, of inputs [16 step, 16 (step + 1)) of a block of weights; kFresh:
  // d = a b. After begin_products(), and until it was waited for, d and a are in use.
  template <class scalar_t, bool kFresh>
  static PVT_DEVICE void multiply_block(Float (&d0)[4][4], Float (&d1)[4][4], const Word (&a)[4],
                                        Blocks block, int step) {
    // From eight rows to the next eight, and the swizzle of 128 bytes.
    constexpr uint32_t kRest = kSwizzleBytes / 16 | 1u << 30;
#define PVT_WGMMA(type, sum, accumulate)                                                         \
  asm volatile(                                                                                  \
      "{.reg .pred p;\n.reg .b64 b;\n"                                                           \
      "setp.ne.u32 p, " accumulate                                                               \
      ", 0;\nmov.b64 b, {%36, %37};\n"                                                           \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "  \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, " \
      "b, p, 1, 1, 0;}"                                                                          \
      : PVT_SUMS(sum, d0), PVT_SUMS(sum, d1)                                                     \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(after(block, step * 32)), "n"(kRest))
#define PVT_SUMS(sum, d)                                                                  \
  sum(d[0][0]), sum(d[0][1]), sum(d[0][2]), sum(d[0][3]), sum(d[1][0]), sum(d[1][1]),     \
      sum(d[1][2]), sum(d[1][3]), sum(d[2][0]), sum(d[2][1]), sum(d[2][2]), sum(d[2][3]), \
      sum(d[3][0]), sum(d[3][1]), sum(d[3][2]), sum(d[3][3])
    constexpr bool kBFloat16 = std::is_same_v<scalar_t, BFloat16>;
    if constexpr (kBFloat16 && kFresh) {
      PVT_WGMMA("bf16", "=f", "0");
    } else if constexpr (kBFloat16) {
      PVT_WGMMA("bf16", "+f", "1");
    } else if constexpr (kFresh) {
      PVT_WGMMA("f16", "=f", "0");
    } else {
      PVT_WGMMA("f16", "+f", "1");
    }
#undef PVT_WGMMA
#undef PVT_SUMS
  }
};

// What its threads have written to shared memory, copies too, is there for products after sync().
template <int kWarps>
struct WarpgroupBlock : DeviceBlock<kWarps> {
  using Warp = DeviceWarpgroup;
  static PVT_DEVICE void sync() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  }
};

// The body of a kernel that is launched on devices that have them; code for others has none.
template <int kWarps, class Run>
PVT_DEVICE void with_warpgroups(const Run& run) {
#ifdef PVT_HAS_WARPGROUPS
  WarpgroupBlock<kWarps> block;
  run(block);
#endif
}

}  // namespace pvt::cuda
