// What the vector and tile units can do at best: independent multiply-adds on registers, no memory.
//
// Each kind needs the instruction that its Peak names; it counts as two operations per product.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__x86_64__) && defined(__linux__) && \
    (__has_include(<amxtileintrin.h>) || __has_include(<amxintrin.h>))
#define PVT_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kChains = 12;       // hides a latency of 4 cycles on up to 3 ports
constexpr int64_t kSteps = 8192;  // between two looks at the clock: some 30 microseconds

// Adds `kSteps` multiply-adds to each chain; returns something of the sums so that they are needed.
using Kernel = float (*)(float seed);

struct Peak {
  Kernel kernel = nullptr;
  int64_t operations = 0;  // of one call
  const char* instruction = "";
};

#if defined(__x86_64__)

// A Kernel named `name`: independent chains of sum = `step`, which may use a and b.
#define PVT_KERNEL(name, isa, Vector, start, other, step, first_lane) \
  __attribute__((target(isa))) float name(float seed) {               \
    const Vector a = start;                                           \
    const auto b = other;                                             \
    Vector sums[kChains];                                             \
    for (Vector & sum : sums)                                         \
      sum = a;                                                        \
    for (int64_t i = 0; i < kSteps; ++i) {                            \
      _Pragma("GCC unroll 12") for (Vector & sum : sums) sum = step;  \
    }                                                                 \
    float out = 0;                                                    \
    for (const Vector& sum : sums)                                    \
      out += static_cast<float>(first_lane(sum));                     \
    return out;                                                       \
  }

PVT_KERNEL(fp32_avx2, "avx2,fma", __m256, _mm256_set1_ps(seed), _mm256_set1_ps(0.5f),
           _mm256_fmadd_ps(sum, b, a), _mm256_cvtss_f32)
PVT_KERNEL(fp32_avx512, "avx512f", __m512, _mm512_set1_ps(seed), _mm512_set1_ps(0.5f),
           _mm512_fmadd_ps(sum, b, a), _mm512_cvtss_f32)
PVT_KERNEL(bf16_avx512, "avx512f,avx512bf16", __m512, _mm512_set1_ps(seed),
           _mm512_cvtne2ps_pbh(a, a), _mm512_dpbf16_ps(sum, b, b), _mm512_cvtss_f32)
PVT_KERNEL(int8_avx512, "avx512f,avx512vnni", __m512i,
           _mm512_set1_epi8(static_cast<char>(seed * 4)), a, _mm512_dpbusd_epi32(sum, b, b),
           _mm512_cvtsi512_si32)

#undef PVT_KERNEL

#if defined(PVT_HAS_AMX)

// Whether the processor has tiles and Linux lets this process use them (asm/prctl.h).
bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBf16 | kTile | kInt8;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAll) == kAll &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

constexpr int kTileChains = 6;  // hide a latency of 52 cycles, at one product in 16

// Products of zeros: six tiles of sums, and one of either side.
#define PVT_TILE_KERNEL(name, isa, product)                      \
  __attribute__((target("amx-tile," isa))) float name(float) {   \
    struct alignas(64) {                                         \
      uint8_t palette = 1, start_row = 0, reserved[14] = {};     \
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64}; \
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};       \
    } config;                                                    \
    asm volatile("" ::"r"(&config) : "memory");                  \
    _tile_loadconfig(&config);                                   \
    for (int64_t i = 0; i < kSteps; i += 16) {                   \
      product(0, 6, 7);                                          \
      product(1, 6, 7);                                          \
      product(2, 6, 7);                                          \
      product(3, 6, 7);                                          \
      product(4, 6, 7);                                          \
      product(5, 6, 7);                                          \
    }                                                            \
    _tile_release();                                             \
    return 0;                                                    \
  }

PVT_TILE_KERNEL(bf16_amx, "amx-bf16", _tile_dpbf16ps)
PVT_TILE_KERNEL(int8_amx, "amx-int8", _tile_dpbsud)

#undef PVT_TILE_KERNEL

#else
bool has_amx() {
  return false;
}
constexpr int kTileChains = 0;
constexpr Kernel bf16_amx = nullptr, int8_amx = nullptr;
#endif

Peak peak_of(int kind) {
  const auto count = [](int lanes) { return int64_t{2} * lanes * kChains * kSteps; };
  // Of tiles: sums of 16 x 16, each of 16 units.
  const auto tile_count = [](int per_unit) {
    return int64_t{2} * 16 * 16 * 16 * per_unit * kTileChains * (kSteps / 16);
  };
  __builtin_cpu_init();
  if (kind == 1 && has_amx())
    return {bf16_amx, tile_count(2), "tdpbf16ps tmm"};
  if (kind == 2 && has_amx())
    return {int8_amx, tile_count(4), "tdpbsud tmm"};
  if (kind == 0 && __builtin_cpu_supports("avx512f"))
    return {fp32_avx512, count(16), "vfmadd231ps zmm"};
  if (kind == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {fp32_avx2, count(8), "vfmadd231ps ymm"};
  if (kind == 1 && __builtin_cpu_supports("avx512bf16"))
    return {bf16_avx512, count(32), "vdpbf16ps zmm"};
  if (kind == 2 && __builtin_cpu_supports("avx512vnni"))
    return {int8_avx512, count(64), "vpdpbusd zmm"};
  return {};
}

#else

Peak peak_of(int) {
  return {};
}

#endif

}  // namespace

// kind: 0 fp32, 1 bf16, 2 int8. "" if the processor has no such instruction.
extern "C" const char* fma_instruction(int kind) {
  return peak_of(kind).instruction;
}

// 10^9 operations per second of `threads` threads together; 0 as above. Each thread works for
// `seconds` and counts with its best 10 milliseconds: new threads may share a core at first.
extern "C" double fma_peak(int kind, int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const Peak peak = peak_of(kind);
  if (peak.kernel == nullptr || threads < 1)
    return 0;
  std::vector<double> best(threads, 0);
  const auto work = [&](double* rate) {
    float needed = 0;
    const auto start = Clock::now();
    const auto since = [](Clock::time_point t) {
      return std::chrono::duration<double>(Clock::now() - t).count();
    };
    do {
      const auto window = Clock::now();
      int64_t calls = 0;
      double elapsed = 0;
      do {
        needed += peak.kernel(0.25f);
        ++calls;
        elapsed = since(window);
      } while (elapsed < 0.01);
      *rate = std::max(*rate, static_cast<double>(calls * peak.operations) / elapsed / 1e9);
    } while (since(start) < seconds);
    volatile float sink = needed;
    (void)sink;
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i)
    others.emplace_back(work, &best[i]);
  work(&best[0]);
  for (std::thread& other : others)
    other.join();
  return std::accumulate(best.begin(), best.end(), 0.0);
}
