// The kernel bodies of the gradients against plain loops in double.
#include <algorithm>
#include <cmath>

#include "kernel_test.h"

#define PVT_KERNEL_BODY "test_gradient_kernels_impl.h"
#include "cpu/foreach_level.h"

namespace {

using Values = std::vector<float>;
using Doubles = std::vector<double>;

// Values that stand at(i) in `values`, relative to the largest expected one.
template <class At>
void check_close(const Values& values, const Doubles& expected, const At& at) {
  double largest = 1;
  for (double value : expected) {
    largest = std::max(largest, std::fabs(value));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    REQUIRE(std::fabs(values[at(i)] - expected[i]) < 1e-5 * largest);
  }
}

void check_close(const Values& values, const Doubles& expected) {
  check_close(values, expected, [](size_t i) { return i; });
}

struct AttentionCase {
  int64_t rows, kv_len, head_dim;
};
constexpr AttentionCase kAttentionCases[] = {{110, 49, 64}, {2, 1, 5}, {53, 20, 33}, {13, 130, 8}};

template <class Level>
void check_attention() {
  for (const AttentionCase& c : kAttentionCases) {
    INFO(c.rows, " queries, ", c.kv_len, " keys, ", c.head_dim, " channels");
    const int64_t D = c.head_dim, half = c.kv_len * D;
    const Values q = random_values<float>(c.rows * D, 1), kv = random_values<float>(2 * half, 2);
    const Values grad = random_values<float>(c.rows * D, 3);
    const float scale = 1 / std::sqrt(float(D));
    Doubles d_q(c.rows * D), d_kv(2 * half);
    for (int64_t i = 0; i < c.rows; ++i) {
      Doubles p(c.kv_len), dp(c.kv_len);
      double total = 0, mean = 0;
      for (int64_t j = 0; j < c.kv_len; ++j) {
        double score = 0;
        for (int64_t d = 0; d < D; ++d) {
          score += double(q[i * D + d]) * kv[j * D + d];
          dp[j] += double(grad[i * D + d]) * kv[half + j * D + d];
        }
        p[j] = std::exp(scale * score);
        total += p[j];
      }
      for (int64_t j = 0; j < c.kv_len; ++j) {
        p[j] /= total;
        mean += p[j] * dp[j];
      }
      for (int64_t j = 0; j < c.kv_len; ++j) {
        const double ds = scale * p[j] * (dp[j] - mean);
        for (int64_t d = 0; d < D; ++d) {
          d_q[i * D + d] += ds * kv[j * D + d];
          d_kv[j * D + d] += ds * q[i * D + d];
          d_kv[half + j * D + d] += p[j] * grad[i * D + d];
        }
      }
    }
    Values our_q, our_kv;
    Level::attention(q, kv, grad, c.kv_len, D, scale, our_q, our_kv);
    check_close(our_q, d_q);
    check_close(our_kv, d_kv);
  }
}

struct MlpCase {
  int64_t rows, C, hidden, capacity;
};
constexpr MlpCase kMlpCases[] = {{100, 64, 128, 256}, {1, 7, 5, 48}, {131, 33, 150, 48}};

template <class Level>
void check_mlp() {
  for (const MlpCase& c : kMlpCases) {
    INFO(c.rows, " rows, ", c.C, " channels, ", c.hidden, " hidden");
    const Values x = random_values<float>(c.rows * c.C, 1);
    const Values grad = random_values<float>(c.rows * c.C, 2);
    const Values fc1 = random_values<float>(c.hidden * c.C, 3, 1 / std::sqrt(double(c.C)));
    const Values fc2 = random_values<float>(c.hidden * c.C, 4, 1 / std::sqrt(double(c.hidden)));
    const Values bias = random_values<float>(c.hidden, 5);
    Doubles d_x(x.size()), d_fc1(fc1.size()), d_fc2(fc2.size()), d_b1(c.hidden), d_b2(c.C);
    for (int64_t i = 0; i < c.rows; ++i) {
      for (int64_t h = 0; h < c.hidden; ++h) {
        double before = bias[h], d_after = 0;
        for (int64_t k = 0; k < c.C; ++k) {
          before += double(x[i * c.C + k]) * fc1[h * c.C + k];
          d_after += double(grad[i * c.C + k]) * fc2[k * c.hidden + h];
        }
        const double phi = 0.5 * std::erfc(-before * std::sqrt(0.5));
        const double slope =
            phi + before * std::exp(-before * before / 2) / std::sqrt(2 * std::acos(-1.0));
        d_b1[h] += d_after * slope;
        for (int64_t k = 0; k < c.C; ++k) {
          d_x[i * c.C + k] += d_after * slope * fc1[h * c.C + k];
          d_fc1[k * c.hidden + h] += d_after * slope * x[i * c.C + k];
          d_fc2[k * c.hidden + h] += before * phi * grad[i * c.C + k];
        }
      }
      for (int64_t k = 0; k < c.C; ++k) {
        d_b2[k] += grad[i * c.C + k];
      }
    }
    Values our_x, our_fc1, our_b1, our_fc2, our_b2;
    const int64_t stride = Level::mlp(x, grad, fc1, bias, fc2, c.C, c.capacity, our_x, our_fc1,
                                      our_b1, our_fc2, our_b2);
    const auto in_rows = [&](size_t i) { return i / c.hidden * stride + i % c.hidden; };
    check_close(our_x, d_x);
    check_close(our_fc1, d_fc1, in_rows);
    check_close(our_b1, d_b1);
    check_close(our_fc2, d_fc2, in_rows);
    check_close(our_b2, d_b2);
  }
}

struct ReductionCase {
  int64_t images, H, W, C, R;
};
constexpr ReductionCase kReductionCases[] = {{3, 9, 10, 64, 2},
                                             {1, 5, 5, 20, 5},
                                             {2, 3, 4, 33, 1},
                                             {1, 17, 8, 70, 8}};

template <class Level>
void check_reduction() {
  constexpr float kEps = 1e-5f;
  for (const ReductionCase& c : kReductionCases) {
    INFO(c.images, " x ", c.H, " x ", c.W, ", ", c.C, " channels, sr_ratio ", c.R);
    const int64_t C = c.C, R = c.R, out_H = c.H / R, out_W = c.W / R, taps = R * R;
    const int64_t windows = c.images * out_H * out_W;
    const Values x = random_values<float>(c.images * c.H * c.W * C, 1);
    const Values grad = random_values<float>(windows * C, 2);
    const Values weight = random_values<float>(C * C * taps, 3, 1 / std::sqrt(double(C * taps)));
    const Values bias = random_values<float>(C, 4), norm_weight = random_values<float>(C, 5);
    Doubles d_x(x.size()), d_weight(weight.size()), d_vectors(3 * C);
    for (int64_t row = 0; row < windows; ++row) {
      const int64_t b = row / (out_H * out_W), y = row / out_W % out_H, w = row % out_W;
      const auto token = [&](int64_t t) {
        return ((b * c.H + y * R + t / R) * c.W + w * R + t % R) * C;
      };
      Doubles conv(bias.begin(), bias.end());
      double mean = 0, variance = 0, d_mean = 0, along = 0;
      for (int64_t o = 0; o < C; ++o) {
        for (int64_t i = 0; i < C * taps; ++i) {
          conv[o] += double(weight[o * C * taps + i]) * x[token(i % taps) + i / taps];
        }
        mean += conv[o] / C;
      }
      for (double value : conv) {
        variance += (value - mean) * (value - mean) / C;
      }
      const double scale = 1 / std::sqrt(variance + kEps);
      for (int64_t o = 0; o < C; ++o) {
        const double d_out = grad[row * C + o], normal = (conv[o] - mean) * scale;
        d_vectors[C + o] += d_out * normal;
        d_vectors[2 * C + o] += d_out;
        d_mean += d_out * norm_weight[o] / C;
        along += d_out * norm_weight[o] * normal / C;
      }
      for (int64_t o = 0; o < C; ++o) {
        const double normal = (conv[o] - mean) * scale;
        const double d_conv =
            scale * (grad[row * C + o] * norm_weight[o] - d_mean - normal * along);
        d_vectors[o] += d_conv;
        for (int64_t i = 0; i < C * taps; ++i) {
          d_x[token(i % taps) + i / taps] += d_conv * weight[o * C * taps + i];
          d_weight[(i % taps * C + o) * C + i / taps] += d_conv * x[token(i % taps) + i / taps];
        }
      }
    }
    Values our_x, our_weight, our_vectors;
    const int64_t row_size =
        Level::reduction(x, grad, c.H, c.W, C, R, weight, bias, {norm_weight.data(), nullptr, kEps},
                         our_x, our_weight, our_vectors);
    const auto in_rows = [&](size_t i) { return i / C * row_size + i % C; };
    check_close(our_x, d_x);
    check_close(our_weight, d_weight, in_rows);
    check_close(our_vectors, d_vectors, in_rows);
  }
}

struct DepthwiseCase {
  int64_t H, W, C;
  bool relu;
};
constexpr DepthwiseCase kDepthwiseCases[] = {{5, 6, 64, false},
                                             {1, 1, 7, true},
                                             {3, 17, 33, true},
                                             {9, 1, 70, false}};

template <class Level>
void check_depthwise() {
  for (const DepthwiseCase& c : kDepthwiseCases) {
    INFO(c.H, " x ", c.W, ", ", c.C, " channels");
    const int64_t C = c.C, tokens = c.H * c.W;
    const Values x = random_values<float>(tokens * C, 1),
                 grad = random_values<float>(tokens * C, 2);
    const Values taps = random_values<float>(9 * C, 3, 1. / 3), bias = random_values<float>(C, 4);
    const auto input = [&](int64_t i) { return c.relu ? std::max(x[i], 0.f) : x[i]; };
    Doubles out(tokens * C), d_x(tokens * C), d_weights(10 * C);
    for (int64_t i = 0; i < tokens * C; ++i) {
      const int64_t token = i / C, channel = i % C;
      const auto foreach_tap = [&](const auto& visit) {
        for (int64_t t = 0; t < 9; ++t) {
          const int64_t y = token / c.W + t / 3 - 1, w = token % c.W + t % 3 - 1;
          if (y >= 0 && y < c.H && w >= 0 && w < c.W) {
            visit(t * C + channel, (y * c.W + w) * C + channel);
          }
        }
      };
      double sum = bias[channel];
      foreach_tap([&](int64_t tap, int64_t place) { sum += double(taps[tap]) * input(place); });
      const double phi = 0.5 * std::erfc(-sum * std::sqrt(0.5));
      out[i] = sum * phi;
      const double d_sum =
          grad[i] * (phi + sum * std::exp(-sum * sum / 2) / std::sqrt(2 * std::acos(-1.0)));
      d_weights[9 * C + channel] += d_sum;
      foreach_tap([&](int64_t tap, int64_t place) {
        d_weights[tap] += d_sum * input(place);
        d_x[place] += c.relu && x[place] <= 0 ? 0 : d_sum * taps[tap];
      });
    }
    Values our_out, our_x, our_weights;
    Level::depthwise({c.H, c.W, C, c.relu, taps.data(), bias.data()}, x, grad, our_out, our_x,
                     our_weights);
    check_close(our_out, out);
    check_close(our_x, d_x);
    check_close(our_weights, d_weights);
  }
}

template <class Level>
void check_level() {
  check_depthwise<Level>();
  check_attention<Level>();
  check_mlp<Level>();
  check_reduction<Level>();
}

#define CHECK_GRADIENTS(level) check_level<pvt::level::Gradients>();

PVT_TEST_EVERY_LEVEL("gradients", CHECK_GRADIENTS)

}  // namespace
