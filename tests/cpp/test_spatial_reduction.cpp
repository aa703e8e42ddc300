// The kernel body of spatial_reduction against a plain loop in double.
#include <cmath>

#include "kernel_test.h"

#define PVT_KERNEL_BODY "cpu/spatial_reduction_impl.h"
#include "cpu/foreach_level.h"

namespace {

struct Case {
  int64_t B, H, W, C, sr_ratio;
};

// Odd grids, channels that fill no vector, one beyond a panel, more rows than a chunk.
constexpr Case kCases[] = {{2, 5, 7, 6, 2}, {1, 3, 3, 65, 3}, {1, 9, 8, 33, 1}, {1, 8, 9, 16, 8}};
constexpr float kEps = 1e-5f;

// LayerNorm(conv(x)) with unit norm weight and no biases, in double
template <class scalar_t>
std::vector<double> reduce_in_double(const Case& c, const std::vector<scalar_t>& x,
                                     const std::vector<scalar_t>& weight) {
  const int64_t R = c.sr_ratio;
  std::vector<double> out;
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t y = 0; y < c.H / R; ++y) {
      for (int64_t w = 0; w < c.W / R; ++w) {
        std::vector<double> row(c.C, 0.0);
        for (int64_t o = 0; o < c.C; ++o) {
          for (int64_t i = 0; i < c.C * R * R; ++i) {
            const int64_t in = i / (R * R), r = i / R % R, s = i % R;
            const int64_t token = (b * c.H + y * R + r) * c.W + w * R + s;
            row[o] +=
                double(float(x[token * c.C + in])) * double(float(weight[o * c.C * R * R + i]));
          }
        }
        double mean = 0, variance = 0;
        for (double value : row) {
          mean += value / c.C;
        }
        for (double value : row) {
          variance += (value - mean) * (value - mean) / c.C;
        }
        for (double value : row) {
          out.push_back((value - mean) / std::sqrt(variance + kEps));
        }
      }
    }
  }
  return out;
}

#define CHECK_LEVEL(level, scalar_t, tolerance)                                                   \
  for (const Case& c : kCases) {                                                                  \
    INFO(c.H, " x ", c.W, " x ", c.C, ", sr_ratio ", c.sr_ratio);                                 \
    const int64_t window = c.sr_ratio * c.sr_ratio;                                               \
    const auto x = random_values<scalar_t>(c.B * c.H * c.W * c.C, 1);                             \
    const auto weight =                                                                           \
        random_values<scalar_t>(c.C * c.C * window, 2, 1 / std::sqrt(float(c.C * window)));       \
    std::vector<float> packed(pvt::level::packed_weight_size<scalar_t>(c.C, c.sr_ratio));         \
    std::vector<float> pack_scratch(pvt::level::pack_scratch_size(c.C, c.sr_ratio));              \
    for (int64_t o = 0; o < pvt::level::num_panels(c.C) * pvt::level::kPanel; o += 4) {           \
      pvt::level::pack_four_channels(weight.data(), c.C, c.sr_ratio, o, packed.data(),            \
                                     pack_scratch.data());                                        \
    }                                                                                             \
    const std::vector<float> zeros(c.C, 0.f), ones(c.C, 1.f);                                     \
    const int64_t out_H = c.H / c.sr_ratio, out_W = c.W / c.sr_ratio;                             \
    const pvt::ReduceArgs args{c.W,          c.C,                                                 \
                               c.sr_ratio,   out_H,                                               \
                               out_W,        c.H * c.W * c.C,                                     \
                               c.C,          packed.data(),                                       \
                               zeros.data(), {ones.data(), zeros.data(), kEps}};                  \
    std::vector<scalar_t> out(c.B* out_H* out_W* c.C);                                            \
    std::vector<float> scratch(pvt::level::reduce_scratch_size(c.C));                             \
    pvt::level::reduce_rows(args, x.data(), 0, c.B* out_H* out_W, out.data(), scratch.data());    \
    const auto expected = reduce_in_double(c, x, weight);                                         \
    REQUIRE(out.size() == expected.size());                                                       \
    for (size_t i = 0; i < out.size(); ++i) {                                                     \
      REQUIRE(double(float(out[i])) == doctest::Approx(expected[i]).epsilon(tolerance).scale(1)); \
    }                                                                                             \
  }

#define CHECK_DTYPES(level)                   \
  CHECK_LEVEL(level, float, 1e-5)             \
  CHECK_LEVEL(level, pvt::BFloat16, 1. / 128) \
  CHECK_LEVEL(level, pvt::Half, 1. / 1024)

PVT_TEST_EVERY_LEVEL("spatial_reduction", CHECK_DTYPES)

}  // namespace
