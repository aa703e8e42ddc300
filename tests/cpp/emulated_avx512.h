// The AVX-512 instructions that kernel bodies name, in plain loops, so that their AVX-512 levels
// can be tested on a processor without it. Included by the compiler before everything else
// (PVT_EMULATE_AVX512 in CMakeLists.txt); what bodies write with vector types, the compiler lowers
// to AVX2 by itself.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

// In place of what foreach_level.h would allow.
#define PVT_AVX512_FEATURES "avx2,fma,f16c"
#define PVT_AVX512_VNNI_FEATURES "avx2,fma,f16c"
#define PVT_AVX512_BF16_FEATURES "avx2,fma,f16c"
#define PVT_EMULATED_AVX512

// With the same features, so that vectors are passed in the same way.
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace emulated_avx512 {

template <class Lane, class Register>
struct Lanes {
  static constexpr int kCount = sizeof(Register) / sizeof(Lane);
  Lane lane[kCount];

  Lanes() = default;
  explicit Lanes(Register r) { std::memcpy(lane, &r, sizeof r); }
  Register get() const {
    Register r;
    std::memcpy(&r, lane, sizeof r);
    return r;
  }
};
using Floats = Lanes<float, __m512>;
using Ints = Lanes<int32_t, __m512i>;

// The register whose lane i is f(i).
template <class Type, class F>
auto each(F f) {
  Type result;
  for (int i = 0; i < Type::kCount; ++i) {
    result.lane[i] = f(i);
  }
  return result.get();
}

inline __m512 set1_ps(float x) {
  return each<Floats>([=](int) { return x; });
}

inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const Floats x(a), y(b), z(c);
  return each<Floats>([=](int i) { return std::fma(x.lane[i], y.lane[i], z.lane[i]); });
}

inline __m512 loadu_ps(const void* p) {
  Floats v;
  std::memcpy(v.lane, p, sizeof v.lane);
  return v.get();
}

inline __m512 maskz_loadu_ps(__mmask16 mask, const void* p) {
  const float* values = static_cast<const float*>(p);
  return each<Floats>([=](int i) { return mask >> i & 1 ? values[i] : 0.f; });
}

inline void mask_storeu_ps(void* p, __mmask16 mask, __m512 v) {
  const Floats x(v);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) {
      std::memcpy(static_cast<float*>(p) + i, &x.lane[i], sizeof(float));
    }
  }
}

inline void mask_storeu_epi16(void* p, __mmask16 mask, __m256i v) {
  const Lanes<uint16_t, __m256i> x(v);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) {
      std::memcpy(static_cast<uint16_t*>(p) + i, &x.lane[i], sizeof(uint16_t));
    }
  }
}

inline __m512 permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  const Floats x(a), y(b);
  const Ints which(index);
  return each<Floats>([=](int i) {
    const int lane = which.lane[i] & 31;
    return lane < 16 ? x.lane[lane] : y.lane[lane - 16];
  });
}

// Of what the instruction does, bodies ask for the smaller magnitude, with the sign of a; of a NaN
// in a and a number, the number.
template <int operation>
__m512 maskz_range_ps(__mmask16, __m512 a, __m512 b) {
  static_assert(operation == 0b0010);
  const Floats x(a), y(b);
  return each<Floats>([=](int i) {
    const float smaller = std::fabs(x.lane[i]) <= std::fabs(y.lane[i]) ? x.lane[i] : y.lane[i];
    return std::copysign(smaller, x.lane[i]);
  });
}

// The one rounding that bodies ask for is down.
template <int rounding>
__m512 maskz_fmadd_round_ps(__mmask16, __m512 a, __m512 b, __m512 c) {
  static_assert(rounding == (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  const Floats x(a), y(b), z(c);
  return each<Floats>([=](int i) {
    const double sum = std::fma(double(x.lane[i]), double(y.lane[i]), double(z.lane[i]));
    const float nearest = static_cast<float>(sum);
    return nearest > sum ? std::nextafter(nearest, -INFINITY) : nearest;
  });
}

inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
}

inline float from_bfloat16(uint16_t upper) {
  const uint32_t bits = uint32_t{upper} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline __m256bh cvtneps_pbh(__m512 v) {
  const Floats x(v);
  return each<Lanes<uint16_t, __m256bh>>([=](int i) { return to_bfloat16(x.lane[i]); });
}

// The lanes of b, then those of a.
inline __m512bh cvtne2ps_pbh(__m512 a, __m512 b) {
  const Floats x(a), y(b);
  return each<Lanes<uint16_t, __m512bh>>(
      [=](int i) { return to_bfloat16(i < 16 ? y.lane[i] : x.lane[i - 16]); });
}

inline __m512 dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  const Floats start(sum);
  const Lanes<uint16_t, __m512bh> x(a), y(b);
  return each<Floats>([=](int i) {
    float total = start.lane[i];
    for (int j = 2 * i + 1; j >= 2 * i; --j) {
      total = std::fma(from_bfloat16(x.lane[j]), from_bfloat16(y.lane[j]), total);
    }
    return total;
  });
}

// Unsigned bytes of a times signed bytes of b.
inline __m512i dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  const Ints start(sum);
  const Lanes<uint8_t, __m512i> x(a);
  const Lanes<int8_t, __m512i> y(b);
  return each<Ints>([=](int i) {
    int32_t total = start.lane[i];
    for (int j = 4 * i; j < 4 * i + 4; ++j) {
      total += x.lane[j] * y.lane[j];
    }
    return total;
  });
}

inline __m512i madd_epi16(__m512i a, __m512i b) {
  const Lanes<int16_t, __m512i> x(a), y(b);
  return each<Ints>(
      [=](int i) { return x.lane[2 * i] * y.lane[2 * i] + x.lane[2 * i + 1] * y.lane[2 * i + 1]; });
}

// Bytes are taken from the 16 around them.
inline __m512i shuffle_epi8(__m512i a, __m512i index) {
  const Lanes<uint8_t, __m512i> x(a), which(index);
  return each<Lanes<uint8_t, __m512i>>([=](int i) {
    return which.lane[i] & 0x80 ? uint8_t{0} : x.lane[i / 16 * 16 + (which.lane[i] & 15)];
  });
}

inline __m512i set4_epi32(int32_t d, int32_t c, int32_t b, int32_t a) {
  const int32_t four[] = {a, b, c, d};
  return each<Ints>([=](int i) { return four[i % 4]; });
}

inline __m128i maskz_cvtepi32_epi8(__mmask16, __m512i v) {
  const Ints x(v);
  return each<Lanes<int8_t, __m128i>>([=](int i) { return static_cast<int8_t>(x.lane[i]); });
}

inline __m256i maskz_cvtepi32_epi16(__mmask16, __m512i v) {
  const Ints x(v);
  return each<Lanes<int16_t, __m256i>>([=](int i) { return static_cast<int16_t>(x.lane[i]); });
}

}  // namespace emulated_avx512
#pragma GCC pop_options

#define _mm512_set1_ps emulated_avx512::set1_ps
#define _mm512_set4_epi32 emulated_avx512::set4_epi32
#define _mm512_fmadd_ps emulated_avx512::fmadd_ps
#define _mm512_load_ps emulated_avx512::loadu_ps
#define _mm512_loadu_ps emulated_avx512::loadu_ps
#define _mm512_maskz_loadu_ps emulated_avx512::maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated_avx512::mask_storeu_ps
#define _mm256_mask_storeu_epi16 emulated_avx512::mask_storeu_epi16
#define _mm512_permutex2var_ps emulated_avx512::permutex2var_ps
#undef _mm512_maskz_range_ps
#define _mm512_maskz_range_ps(mask, a, b, operation) \
  emulated_avx512::maskz_range_ps<operation>(mask, a, b)
#undef _mm512_maskz_fmadd_round_ps
#define _mm512_maskz_fmadd_round_ps(mask, a, b, c, rounding) \
  emulated_avx512::maskz_fmadd_round_ps<rounding>(mask, a, b, c)
#define _mm512_cvtneps_pbh emulated_avx512::cvtneps_pbh
#define _mm512_cvtne2ps_pbh emulated_avx512::cvtne2ps_pbh
#define _mm512_dpbf16_ps emulated_avx512::dpbf16_ps
#define _mm512_dpbusd_epi32 emulated_avx512::dpbusd_epi32
#define _mm512_madd_epi16 emulated_avx512::madd_epi16
#define _mm512_shuffle_epi8 emulated_avx512::shuffle_epi8
#define _mm512_maskz_cvtepi32_epi8 emulated_avx512::maskz_cvtepi32_epi8
#define _mm512_maskz_cvtepi32_epi16 emulated_avx512::maskz_cvtepi32_epi16
