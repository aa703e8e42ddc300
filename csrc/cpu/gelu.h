// GELU(x) = x Phi(x), Phi the normal distribution's cumulative function: the exact GELU, not the
// one by tanh. Part of a kernel body (foreach_level.h).
//
//   GELU(x) = x / 2 + |x| g(|x|),   g(a) = Phi(a) - 1/2 in [0, 1/2]
//
// The error is below 2.4e-7 max(|x|, 1/2), and beyond |x| = 5.65 the result is x or 0 to the last
// bit. As in torch, -inf gives NaN (it is inf * 0).

#ifndef PVT_BODY_GELU
#define PVT_BODY_GELU

#include "cpu/vec.h"

#if PVT_LEVEL >= PVT_LEVEL_AVX512

// table[row][lane's five lowest bits]
inline Vec lookup(const float (&table)[32], __m512i lane) {
  return (Vec)_mm512_permutex2var_ps(_mm512_load_ps(table), lane, _mm512_load_ps(table + 16));
}

inline Vec gelu(Vec x) {
  // Adding it rounds to a multiple of 1/4, whose number is then in the lowest bits.
  constexpr float kRound = 1.5f * (1 << 21);
  const IntVec bits = (IntVec)x & 0x7fffffff;
  const IntVec limit = (IntVec)broadcast(7.75f);
  const Vec a = (Vec)bits;
  const Vec clamped = (Vec)(bits < limit ? bits : limit);  // as integers: the limit for NaN
  const Vec shifted = clamped + kRound;
  const Vec u = clamped - (shifted - kRound);
  const __m512i piece = (__m512i)shifted;
  Vec g = lookup(kGeluPieces[4], piece);
  g = fmadd(g, u, lookup(kGeluPieces[3], piece));
  g = fmadd(g, u, lookup(kGeluPieces[2], piece));
  g = fmadd(g, u, lookup(kGeluPieces[1], piece));
  g = fmadd(g, u, lookup(kGeluPieces[0], piece));
  return fmadd(a, g, x * 0.5f);
}

#else

inline Vec gelu(Vec x) {
  const Vec a = (Vec)((IntVec)x & 0x7fffffff);
  const Vec limit = broadcast(kGeluLimit);
  const Vec clamped = a < limit ? a : limit;
  const Vec t = clamped * clamped;
  Vec p = broadcast(kGeluP[5]), q = broadcast(kGeluQ[5]);
  for (int i = 4; i >= 0; --i) {
    p = fmadd(p, t, broadcast(kGeluP[i]));
    q = fmadd(q, t, broadcast(kGeluQ[i]));
  }
  const Vec g = a < limit ? clamped * p / q : broadcast(0.5f);
  return fmadd(a, g, x * 0.5f);
}

#endif

#endif  // PVT_BODY_GELU
