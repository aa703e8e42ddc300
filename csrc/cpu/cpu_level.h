// Which instruction set the CPU kernels use, chosen once at run time.
#pragma once

#include <vector>

// Whether the compiler has the tile instructions of CpuLevel::kAmx.
#if defined(__x86_64__) && (__has_include(<amxtileintrin.h>) || __has_include(<amxintrin.h>))
#define PVT_HAS_AMX
#endif

namespace pvt {

// In rising order: a processor that runs one level runs every level below it.
enum class CpuLevel { kBaseline, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };

// "baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"
const char* name(CpuLevel level);

// The levels this library was compiled with, lowest first. Only the baseline outside x86-64.
const std::vector<CpuLevel>& compiled_cpu_levels();

// The fastest level that was compiled and that the processor runs, or the one named by
// PVT_CPU_LEVEL, or the highest below that. Throws std::runtime_error if that variable holds any
// other word.
CpuLevel cpu_level();

// This thread's tiles, if there are any, are no longer in use, so that neither the system keeps nor
// the processor powers what they hold.
void release_tiles();

}  // namespace pvt
