// What the tests of kernel bodies share. A body is tested at every CPU level that this processor
// runs or that is emulated, on buffers of exactly the sizes it asks for, under the address
// sanitizer.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "cpu/cpu_level.h"
#include "cpu/float_types.h"

template <class scalar_t>
std::vector<scalar_t> random_values(int64_t count, unsigned seed, double size = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<scalar_t> values(count);
  for (scalar_t& value : values) {
    value = static_cast<scalar_t>(static_cast<float>(size) * normal(generator));
  }
  return values;
}

inline float from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// What the processor has to run, if it is to test a level.
inline pvt::CpuLevel without_emulation(pvt::CpuLevel level) {
#if defined(PVT_EMULATED_AMX)
  if (level == pvt::CpuLevel::kAmx) {
    level = pvt::CpuLevel::kAvx512Bf16;
  }
#endif
#if defined(PVT_EMULATED_AVX512)
  if (level > pvt::CpuLevel::kAvx2 && level < pvt::CpuLevel::kAmx) {
    level = pvt::CpuLevel::kAvx2;
  }
#endif
  return level;
}

inline bool can_test(pvt::CpuLevel level) {
  return pvt::cpu_level() >= without_emulation(level);
}

// A test case per level; CHECK(level) is expanded with the name of the level's namespace.
#define PVT_TEST_LEVEL(title, CHECK, level, Level)          \
  TEST_CASE(title ", " #level) {                            \
    if (can_test(pvt::CpuLevel::Level)) {                   \
      CHECK(level)                                          \
    } else {                                                \
      MESSAGE("NOT TESTED: this processor has no " #level); \
    }                                                       \
  }
#if defined(__x86_64__)
#define PVT_TEST_EVERY_LEVEL(title, CHECK)               \
  PVT_TEST_LEVEL(title, CHECK, baseline, kBaseline)      \
  PVT_TEST_LEVEL(title, CHECK, avx2, kAvx2)              \
  PVT_TEST_LEVEL(title, CHECK, avx512, kAvx512)          \
  PVT_TEST_LEVEL(title, CHECK, avx512_vnni, kAvx512Vnni) \
  PVT_TEST_LEVEL(title, CHECK, avx512_bf16, kAvx512Bf16) \
  PVT_TEST_LEVEL(title, CHECK, amx, kAmx)
#else
#define PVT_TEST_EVERY_LEVEL(title, CHECK) PVT_TEST_LEVEL(title, CHECK, baseline, kBaseline)
#endif
