// Kernels are templates over two policies: Warp, 32 lanes with their registers, and Block, warps
// with their shared memory. A GPU's are in device_warp.h and device_block.h; the tests have others
// (tests/cpp/cuda), under which the same source runs on a CPU, lane by lane, under sanitizers.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PVT_DEVICE __device__ __forceinline__
#define PVT_HOST_DEVICE __host__ __device__ __forceinline__
#define PVT_UNROLL _Pragma("unroll")
#define PVT_NO_UNROLL _Pragma("unroll 1")
#define PVT_PRAGMA(text) _Pragma(#text)
#define PVT_UNROLL_BY(times) PVT_PRAGMA(unroll times)
#else
#define PVT_DEVICE inline
#define PVT_HOST_DEVICE inline
#define PVT_UNROLL
#define PVT_NO_UNROLL
#define PVT_UNROLL_BY(times)
#endif

namespace pvt::cuda {

// The 16-bit types that tensor cores multiply; sums are float32.
struct BFloat16 {};
struct Half {};

constexpr int kLanes = 32;
constexpr int kTile = 16;    // rows of a tile, those of one mma.m16n8k16
constexpr int kStrip = 32;   // columns that are computed together, two panels of packed weights
constexpr int kPanel = 16;   // columns of a panel (pvt_ext/packing.py)
constexpr int kVector = 16;  // bytes of the widest load

}  // namespace pvt::cuda
