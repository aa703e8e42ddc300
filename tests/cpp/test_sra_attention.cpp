// The kernel body of sra_attention against a plain loop in double.
#include <cmath>

#include "kernel_test.h"

#define PVT_KERNEL_BODY "cpu/sra_attention_impl.h"
#include "cpu/foreach_level.h"

namespace {

struct Case {
  int64_t num_rows, kv_len, head_dim;
};

// Ragged row tiles, a single key, one key beyond a panel and beyond a block, odd head_dim.
constexpr Case kCases[] = {{13, 49, 64}, {1, 1, 1},    {6, 65, 33},  {7, 513, 8},
                           {12, 3, 130}, {35, 56, 32}, {33, 64, 16}, {2, 50, 7}};

// softmax(scale * q k^T) v in double
template <class scalar_t>
std::vector<double> attend_in_double(const Case& c, const std::vector<scalar_t>& q,
                                     const std::vector<scalar_t>& k, const std::vector<scalar_t>& v,
                                     double scale) {
  std::vector<double> out(c.num_rows * c.head_dim, 0.0);
  for (int64_t i = 0; i < c.num_rows; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < c.kv_len; ++j) {
      double score = 0;
      for (int64_t d = 0; d < c.head_dim; ++d) {
        score += double(float(q[i * c.head_dim + d])) * double(float(k[j * c.head_dim + d]));
      }
      const double p = std::exp(scale * score);
      sum += p;
      for (int64_t d = 0; d < c.head_dim; ++d) {
        out[i * c.head_dim + d] += p * double(float(v[j * c.head_dim + d]));
      }
    }
    for (int64_t d = 0; d < c.head_dim; ++d) {
      out[i * c.head_dim + d] /= sum;
    }
  }
  return out;
}

#define CHECK_LEVEL(level, scalar_t, tolerance)                                                    \
  for (const Case& c : kCases) {                                                                   \
    INFO(c.num_rows, " rows, ", c.kv_len, " keys, head_dim ", c.head_dim);                         \
    const auto q = random_values<scalar_t>(c.num_rows * c.head_dim, 1);                            \
    const auto k = random_values<scalar_t>(c.kv_len * c.head_dim, 2);                              \
    const auto v = random_values<scalar_t>(c.kv_len * c.head_dim, 3);                              \
    std::vector<scalar_t> out(q.size());                                                           \
    std::vector<float> packed(pvt::level::packed_head_size<scalar_t>(c.kv_len, c.head_dim), NAN);  \
    std::vector<float> scratch(pvt::level::attend_scratch_size<scalar_t>(c.head_dim), NAN);        \
    pvt::level::pack_head<scalar_t>(k.data(), v.data(), c.kv_len, c.head_dim, c.head_dim,          \
                                    packed.data(), scratch.data());                                \
    const double scale = 1 / std::sqrt(double(c.head_dim));                                        \
    pvt::level::attend_rows(q.data(), c.head_dim, packed.data(), c.num_rows, c.kv_len, c.head_dim, \
                            float(scale), out.data(), c.head_dim, scratch.data());                 \
    const auto expected = attend_in_double(c, q, k, v, scale);                                     \
    for (size_t i = 0; i < out.size(); ++i) {                                                      \
      REQUIRE(double(float(out[i])) == doctest::Approx(expected[i]).epsilon(tolerance).scale(1));  \
    }                                                                                              \
  }

#define CHECK_DTYPES(level)                   \
  CHECK_LEVEL(level, float, 2e-6)             \
  CHECK_LEVEL(level, pvt::BFloat16, 1. / 128) \
  CHECK_LEVEL(level, pvt::Half, 1. / 1024)

PVT_TEST_EVERY_LEVEL("sra_attention", CHECK_DTYPES)

}  // namespace
