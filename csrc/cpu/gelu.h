// GELU(x) = x Phi(x), Phi the normal distribution's cumulative function: the exact GELU, not the
// one by tanh. Part of a kernel body (foreach_level.h).
//
//   GELU(x) = x / 2 + |x| g(|x|),   g(a) = Phi(a) - 1/2 in [0, 1/2]
//
// The error is below 2.4e-7 max(|x|, 1/2), and beyond |x| = 5.65 the result is x or 0 to the last
// bit. As in torch, -inf gives NaN (it is inf * 0).
//
// coarse_gelu() takes half of the time. Its error, below 4e-5 max(|x|, 1/2), is a fiftieth of what
// rounding the result to bfloat16 adds, or an eightieth of a step of 8-bit integers.

#ifndef PVT_BODY_GELU
#define PVT_BODY_GELU

#include "cpu/vec.h"

#if PVT_LEVEL >= PVT_LEVEL_AVX512

// table[row][lane's five lowest bits]
inline Vec lookup(const float (&table)[32], __m512i lane) {
  return (Vec)_mm512_permutex2var_ps(_mm512_load_ps(table), lane, _mm512_load_ps(table + 16));
}

// g(a) for a >= 0
inline Vec phi_above_half(Vec a) {
  // Adding it rounds to a multiple of 1/4, whose number is then in the lowest bits.
  constexpr float kRound = 1.5f * (1 << 21);
  const IntVec bits = (IntVec)a;
  const IntVec limit = (IntVec)broadcast(7.75f);
  const Vec clamped = (Vec)(bits < limit ? bits : limit);  // as integers: the limit for NaN
  const Vec shifted = clamped + kRound;
  const Vec u = clamped - (shifted - kRound);
  const __m512i piece = (__m512i)shifted;
  Vec g = lookup(kGeluPieces[4], piece);
  g = fmadd(g, u, lookup(kGeluPieces[3], piece));
  g = fmadd(g, u, lookup(kGeluPieces[2], piece));
  g = fmadd(g, u, lookup(kGeluPieces[1], piece));
  return fmadd(g, u, lookup(kGeluPieces[0], piece));
}

// Phi is a parabola in each of 30 pieces of [-4.05, 4.05), 0 and 1 outside.
inline Vec coarse_gelu(Vec x) {
  // Adding it rounds down to an integer, which is then in the lowest bits.
  constexpr float kRound = 1.5f * (1 << 23);
  // The smaller magnitude, with the sign of x: a little outside. Of a NaN and the limit, the limit.
  // (Without the masks, GCC 12 warns of its own header.)
  const __m512 limit = _mm512_set1_ps(15.5f / kPhiDensity);
  const __m512 clamped = _mm512_maskz_range_ps(0xffff, (__m512)x, limit, 0b0010);
  const __m512i piece = (__m512i)_mm512_maskz_fmadd_round_ps(
      0xffff, clamped, _mm512_set1_ps(kPhiDensity), _mm512_set1_ps(kRound),
      _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Vec phi = lookup(kPhiPieces[2], piece);
  phi = fmadd(phi, (Vec)clamped, lookup(kPhiPieces[1], piece));
  phi = fmadd(phi, (Vec)clamped, lookup(kPhiPieces[0], piece));
  return x * phi;
}

#else

// g(a) for a >= 0
inline Vec phi_above_half(Vec a) {
  const Vec limit = broadcast(kGeluLimit);
  const Vec clamped = a < limit ? a : limit;  // the limit for NaN; one instruction
  const Vec t = clamped * clamped;
  Vec p = broadcast(kGeluP[5]), q = broadcast(kGeluQ[5]);
  for (int i = 4; i >= 0; --i) {
    p = fmadd(p, t, broadcast(kGeluP[i]));
    q = fmadd(q, t, broadcast(kGeluQ[i]));
  }
  return clamped * p / q;
}

inline Vec coarse_gelu(Vec x) {
  const Vec a = (Vec)((IntVec)x & 0x7fffffff);
  const Vec limit = broadcast(kCoarseGeluLimit);
  const Vec clamped = a < limit ? a : limit;
  Vec q = broadcast(kCoarseGeluQ[7]);
  for (int i = 6; i >= 0; --i) {
    q = fmadd(q, clamped, broadcast(kCoarseGeluQ[i]));
  }
  const Vec g = fmadd(clamped - limit, q, broadcast(0.5f));
  return fmadd(a, g, x * 0.5f);
}

#endif

inline Vec gelu(Vec x) {
  const Vec a = (Vec)((IntVec)x & 0x7fffffff);
  return fmadd(a, phi_above_half(a), x * 0.5f);
}

// GELU(x), and its derivative Phi(x) + x phi(x), phi the normal distribution's density. The
// latter's error is below 3e-7; as in torch, it is NaN for infinities.
inline Vec gelu_with_slope(Vec x, Vec& slope) {
  constexpr float kDensityAtZero = 0.398942280f, kHalfLog2E = 0.721347520f;
  const IntVec sign = (IntVec)x & INT32_MIN;
  const Vec a = (Vec)((IntVec)x ^ sign), g = phi_above_half(a);
  const Vec density = exp2_nonpositive(x * x * -kHalfLog2E) * kDensityAtZero;
  slope = fmadd(x, density, (Vec)((IntVec)g ^ sign) + 0.5f);
  return fmadd(a, g, x * 0.5f);
}

// GELU on the way to a product in scalar_t.
template <class scalar_t>
inline Vec gelu_before(Vec x) {
  if constexpr (sizeof(scalar_t) < sizeof(float)) {
    return coarse_gelu(x);
  } else {
    return gelu(x);
  }
}

#endif  // PVT_BODY_GELU
