// Rows of float32, bfloat16 or float16 to and from float. Part of a kernel body (foreach_level.h).
#ifndef PVT_BODY_CONVERT
#define PVT_BODY_CONVERT

#include "cpu/vec.h"

// The first `count` lanes, or all if there are fewer; in a register the others are zero. Floats
// are not copied one by one: a call in a loop makes compilers keep its vectors in memory.
inline Vec load_floats(const float* src, int64_t count) {
  if (count >= kLanes) {
    return load(src);
  }
#if PVT_LEVEL >= PVT_LEVEL_AVX512
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), src);
#elif PVT_LEVEL == PVT_LEVEL_AVX2
  return (Vec)_mm256_maskload_ps(src, (__m256i)lanes_before(count));
#else
  Vec v{};
  for (int i = 0; i < count; ++i) {
    v[i] = src[i];
  }
  return v;
#endif
}

inline void store_floats(Vec v, int64_t count, float* dst) {
  if (count >= kLanes) {
    return store(dst, v);
  }
#if PVT_LEVEL >= PVT_LEVEL_AVX512
  _mm512_mask_storeu_ps(dst, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#elif PVT_LEVEL == PVT_LEVEL_AVX2
  _mm256_maskstore_ps(dst, (__m256i)lanes_before(count), (__m256)v);
#else
  for (int i = 0; i < count; ++i) {
    dst[i] = v[i];
  }
#endif
}

inline void to_float(const float* src, int64_t count, float* dst) {
  __builtin_memcpy(dst, src, count * sizeof(float));
}

inline void to_float(const PackedFloat* src, int64_t count, float* dst) {
  __builtin_memcpy(dst, src, count * sizeof(float));
}

inline void to_float(const BFloat16* src, int64_t count, float* dst) {
  // bfloat16 is the upper half of a float.
  typedef uint16_t Narrow __attribute__((vector_size(2 * kLanes)));
  typedef uint32_t Wide __attribute__((vector_size(4 * kLanes)));
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Narrow narrow;
    __builtin_memcpy(&narrow, src + i, sizeof narrow);
    const Wide wide = __builtin_convertvector(narrow, Wide) << 16;
    __builtin_memcpy(dst + i, &wide, sizeof wide);
  }
  for (; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(src[i].x) << 16;
    __builtin_memcpy(dst + i, &bits, sizeof bits);
  }
}

inline void to_float(const Half* src, int64_t count, float* dst) {
  int64_t i = 0;
#if PVT_LEVEL >= PVT_LEVEL_AVX2
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(dst + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  }
#endif
  for (; i < count; ++i) {
    dst[i] = src[i];
  }
}

inline void from_float(const float* src, int64_t count, float* dst) {
  __builtin_memcpy(dst, src, count * sizeof(float));
}

inline void from_float(const float* src, int64_t count, BFloat16* dst) {
  // Round to nearest, ties to even; a NaN stays a NaN.
  int64_t i = 0;
#if PVT_LEVEL >= PVT_LEVEL_AVX512_BF16
  for (; i + 16 <= count; i += 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(src + i));
    __builtin_memcpy(dst + i, &rounded, sizeof rounded);
  }
  if (i < count) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)load_floats(src + i, count - i));
    _mm256_mask_storeu_epi16(dst + i, static_cast<__mmask16>((1u << (count - i)) - 1),
                             (__m256i)rounded);
    return;
  }
#endif
  for (; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, src + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    dst[i].x = static_cast<uint16_t>(src[i] == src[i] ? rounded : 0x7fc0u);
  }
}

// The lanes rounded to bfloat16, as floats: to nearest, ties to even; a NaN stays one.
inline Vec round_to_bfloat16(Vec v) {
  const IntVec bits = (IntVec)v;
  const IntVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & -65536;
  return (Vec)(v == v ? rounded : IntVec{} + 0x7fc00000);
}

inline void from_float(const float* src, int64_t count, Half* dst) {
  int64_t i = 0;
#if PVT_LEVEL >= PVT_LEVEL_AVX2
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < count; ++i) {
    dst[i] = src[i];
  }
}

// A whole vector of them.
inline Vec load_floats(const float* src) {
  return load(src);
}

template <class scalar_t>
inline Vec load_floats(const scalar_t* src) {
  float values[kLanes];
  to_float(src, kLanes, values);
  return load(values);
}

inline void store_floats(Vec v, float* dst) {
  store(dst, v);
}

#if PVT_LEVEL >= PVT_LEVEL_AVX512_BF16
inline void store_floats(Vec v, BFloat16* dst) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  __builtin_memcpy(dst, &rounded, sizeof rounded);
}
#endif

template <class scalar_t>
inline void store_floats(Vec v, scalar_t* dst) {
  float values[kLanes];
  store(values, v);
  from_float(values, kLanes, dst);
}

// The first `count` lanes.
template <class scalar_t>
inline void store_floats(Vec v, int64_t count, scalar_t* dst) {
  if (count >= kLanes) {
    return store_floats(v, dst);
  }
  float values[kLanes];
  store(values, v);
  from_float(values, count, dst);
}

#endif  // PVT_BODY_CONVERT
