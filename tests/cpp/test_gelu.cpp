// GELU and exp of the CPU kernels against double, over the whole range of float.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel_test.h"

#define PVT_KERNEL_BODY "test_gelu_impl.h"
#include "cpu/foreach_level.h"

namespace {

double exact_gelu(double x) {
  return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
}

// Calls check(x, f(x)) for about four million floats of both signs, from 0 to infinity.
template <class F, class Check>
void sweep(F f, Check check) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  constexpr uint32_t kStep = 509;  // prime, so that every piece of a table is met everywhere
  float in[64], out[64];
  for (uint32_t bits = 0; bits < kInfinity; bits += 32 * kStep) {
    for (uint32_t i = 0; i < 32; ++i) {
      const uint32_t next = bits + i * kStep;
      in[2 * i] = from_bits(next < kInfinity ? next : 0);
      in[2 * i + 1] = -in[2 * i];
    }
    f(in, 64, out);
    for (int i = 0; i < 64; ++i) {
      check(in[i], out[i]);
    }
  }
}

// The bound is on the error relative to max(|x|, 1/2).
void check_gelu(void (*gelu)(const float*, int64_t, float*), double bound) {
  double worst = 0;
  sweep(gelu, [&](float x, float y) {
    worst = std::max(worst, std::fabs(y - exact_gelu(x)) / std::max(std::fabs(double(x)), 0.5));
  });
  CHECK(worst < bound);

  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  float in[64] = {inf, -inf, nan, -nan, 0.f, -0.f}, out[64];
  gelu(in, 64, out);
  CHECK(out[0] == inf);
  CHECK(std::isnan(out[1]));
  CHECK(std::isnan(out[2]));
  CHECK(std::isnan(out[3]));
  CHECK(out[4] == 0.f);
  CHECK(out[5] == 0.f);
}

void check_gelu_outside(void (*gelu)(const float*, int64_t, float*)) {
  bool exact = true;
  sweep(gelu, [&](float x, float y) {
    if (std::fabs(x) > 5.65f) {
      exact = exact && y == (x > 0 ? x : 0.f);
    }
  });
  CHECK(exact);
}

void check_gelu_slope(void (*slope)(const float*, int64_t, float*)) {
  const double density_at_zero = 1 / std::sqrt(2 * std::acos(-1.0));
  double worst = 0;
  sweep(slope, [&](float x, float y) {
    const double truth = 0.5 * std::erfc(-x * std::sqrt(0.5)) +
                         x * density_at_zero * std::exp(-0.5 * double(x) * double(x));
    worst = std::max(worst, std::fabs(y - truth));
  });
  CHECK(worst < 3e-7);

  const float inf = std::numeric_limits<float>::infinity();
  float in[64] = {inf, -inf, std::numeric_limits<float>::quiet_NaN(), 0.f, -0.f}, out[64];
  slope(in, 64, out);
  CHECK(std::isnan(out[0]));  // as torch: inf * 0
  CHECK(std::isnan(out[1]));
  CHECK(std::isnan(out[2]));
  CHECK(out[3] == 0.5f);
  CHECK(out[4] == 0.5f);
}

// The bound is on the error in units in the last place.
void check_exp2(void (*exp2)(const float*, int64_t, float*), double bound) {
  double worst = 0;
  bool below = true;
  const auto of_nonpositive = [&](const float* x, int64_t count, float* y) {
    float in[64];
    for (int64_t i = 0; i < count; ++i) {
      in[i] = -std::fabs(x[i]);
    }
    exp2(in, count, y);
  };
  sweep(of_nonpositive, [&](float x, float y) {
    x = -std::fabs(x);
    if (x < -126.5f) {
      below = below && y == 0.f;
    } else {
      const double truth = std::exp2(double(x));
      const int exponent = std::max(std::ilogb(truth), -126);
      worst = std::max(worst, std::fabs(y - truth) / std::ldexp(1.0, exponent - 23));
    }
  });
  CHECK(worst < bound);
  CHECK(below);

  const float inf = std::numeric_limits<float>::infinity();
  float in[64] = {-inf, std::numeric_limits<float>::quiet_NaN(), 0.f, -0.f}, out[64];
  exp2(in, 64, out);
  CHECK(out[0] == 0.f);
  CHECK(std::isnan(out[1]));
  CHECK(out[2] == 1.f);
  CHECK(out[3] == 1.f);
}

// The bounds that csrc/cpu/gelu.h and csrc/cpu/vec.h state.
#define CHECK_FUNCTIONS(level)                    \
  check_gelu(pvt::level::gelu_of, 2.4e-7);        \
  check_gelu_outside(pvt::level::gelu_of);        \
  check_gelu(pvt::level::coarse_gelu_of, 4e-5);   \
  check_gelu_outside(pvt::level::coarse_gelu_of); \
  check_gelu_slope(pvt::level::gelu_slope_of);    \
  check_exp2(pvt::level::exp2_of, 1.5);           \
  check_exp2(pvt::level::coarse_exp2_of, 2400);

PVT_TEST_EVERY_LEVEL("gelu and exp2", CHECK_FUNCTIONS)

}  // namespace
