#include "cpu/cpu_level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(PVT_HAS_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace pvt {
namespace {

#if defined(__x86_64__)
// Not known to __builtin_cpu_supports in every compiler.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Whether the processor has tiles, and the system lets this process use them: they are 8 KB more of
// every thread's state, which Linux keeps for those that ask.
bool has_amx() {
#if defined(PVT_HAS_AMX) && defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;  // of leaf 7's EDX
  constexpr unsigned kAll = kBf16 | kTile | kInt8;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, asm/fpu/types.h
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAll) == kAll &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#if defined(PVT_HAS_AMX)
__attribute__((target("amx-tile"))) void release() {
  _tile_release();
}
#endif

constexpr const char* kNames[] = {"baseline",    "avx2",        "avx512",
                                  "avx512_vnni", "avx512_bf16", "amx"};

// The highest level that the processor runs.
CpuLevel detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) {
    return CpuLevel::kBaseline;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return CpuLevel::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512vnni")) {
    return CpuLevel::kAvx512;
  }
  if (!__builtin_cpu_supports("avx512bf16")) {
    return CpuLevel::kAvx512Vnni;
  }
  return has_amx() ? CpuLevel::kAmx : CpuLevel::kAvx512Bf16;
#else
  return CpuLevel::kBaseline;
#endif
}

// Intel's cores (measured: Emerald Rapids) begin a vdpbf16ps every second cycle, and two
// multiply-adds of floats every cycle: the latter get through twice as many products. AMD's
// (measured: Zen 4) begin as many of one as of the other.
bool bfloat16_is_slow() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

CpuLevel choose() {
  const CpuLevel best = detect();
  const char* wanted = std::getenv("PVT_CPU_LEVEL");
  if (wanted == nullptr || *wanted == '\0') {
    return best == CpuLevel::kAvx512Bf16 && bfloat16_is_slow() ? CpuLevel::kAvx512Vnni : best;
  }
  for (CpuLevel level : compiled_cpu_levels()) {
    if (wanted == std::string(name(level))) {
      return level < best ? level : best;
    }
  }
  std::string known;
  for (CpuLevel level : compiled_cpu_levels()) {
    known += (known.empty() ? "" : ", ") + std::string(name(level));
  }
  throw std::runtime_error("PVT_CPU_LEVEL: expected one of " + known + ", got '" + wanted + "'");
}

}  // namespace

const char* name(CpuLevel level) {
  return kNames[static_cast<int>(level)];
}

const std::vector<CpuLevel>& compiled_cpu_levels() {
#if defined(__x86_64__)
  static const std::vector<CpuLevel> levels{
      CpuLevel::kBaseline,   CpuLevel::kAvx2,       CpuLevel::kAvx512,
      CpuLevel::kAvx512Vnni, CpuLevel::kAvx512Bf16,
#if defined(PVT_HAS_AMX)
      CpuLevel::kAmx,
#endif
  };
#else
  static const std::vector<CpuLevel> levels{CpuLevel::kBaseline};
#endif
  return levels;
}

CpuLevel cpu_level() {
  static const CpuLevel level = choose();
  return level;
}

void release_tiles() {
#if defined(PVT_HAS_AMX)
  if (cpu_level() == CpuLevel::kAmx) {
    release();
  }
#endif
}

}  // namespace pvt
