// The exact GELU, x * Phi(x), in six instructions for bfloat16 and eight for float16.
#pragma once

#include <type_traits>

#include "cuda/strips.h"

namespace pvt::cuda {

// log2(Phi(-a)) for a >= 0: nearly a parabola, so that few terms do, and their error is one in
// proportion. They are chosen for the least error of the GELU; the last is negative, so that Phi is
// 0 for the largest a too.
template <class scalar_t, class Warp>
PVT_DEVICE typename Warp::Float log2_phi(const typename Warp::Float& a) {
  using Float = typename Warp::Float;
  if constexpr (std::is_same_v<scalar_t, BFloat16>) {
    Float p = Warp::fma(Float(-2.487394959e-02f), a, Float(-4.988535047e-01f));
    p = Warp::fma(p, a, Float(-1.129219651e+00f));
    return Warp::fma(p, a, Float(-1.003536701e+00f));
  } else {
    Float p = Warp::fma(Float(-4.732940288e-04f), a, Float(7.084461395e-03f));
    p = Warp::fma(p, a, Float(-5.182716995e-02f));
    p = Warp::fma(p, a, Float(-4.599926472e-01f));
    p = Warp::fma(p, a, Float(-1.150787830e+00f));
    return Warp::fma(p, a, Float(-1.000037670e+00f));
  }
}

// max(x, 0) - |x| Phi(-|x|), for results that are rounded to scalar_t. |error| < 5.6e-5 for
// BFloat16, less than half a unit in the last place of results from 2^-5 on, and < 1e-6 for Half,
// from 2^-9 on; that of smaller results shrinks with them. NaN for infinities. With CUDA's erff it
// takes 32 instructions.
template <class scalar_t, class Warp>
PVT_DEVICE typename Warp::Float gelu(const typename Warp::Float& x) {
  using Float = typename Warp::Float;
  const Float a = Warp::abs(x);
  const Float phi = Warp::exp2(log2_phi<scalar_t, Warp>(a));
  return Warp::fma(-a, phi, Warp::max(x, Float(0.f)));
}

template <class scalar_t, class Warp>
PVT_DEVICE void apply_gelu(Strip<Warp>& strip) {
  PVT_UNROLL for (int j = 0; j < 4; ++j) {
    PVT_UNROLL for (int i = 0; i < 4; ++i) {
      strip.sum[j][i] = gelu<scalar_t, Warp>(strip.sum[j][i]);
    }
  }
}

}  // namespace pvt::cuda
