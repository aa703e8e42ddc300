// The kernel bodies of the packed operators against plain loops in double.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernel_test.h"

#define PVT_KERNEL_BODY "test_block_kernels_impl.h"
#include "cpu/foreach_level.h"

namespace {

using pvt::BFloat16;
using Matrix = std::vector<std::vector<double>>;

// A layer of random weights [rows, columns] that scalar_t holds exactly, and its panels of 16 rows.
template <class scalar_t>
struct Layer {
  static constexpr bool kQuantised = std::is_same_v<scalar_t, int8_t>;
  static constexpr int64_t kGroup = 4 / sizeof(scalar_t);

  Layer(int64_t rows, int64_t columns, unsigned seed)
      : columns(columns),
        weight(random_values<float>(rows * columns, seed, 1 / std::sqrt(double(columns)))),
        bias(random_values<float>(rows, seed + 100)) {
    const int64_t depth = (columns + kGroup - 1) / kGroup,
                  panel_depth = depth + (kQuantised ? 1 : 0);
    panels.resize((rows + 15) / 16 * 16 * panel_depth);
    for (int64_t r = 0; r < rows; ++r) {
      const auto unit = [&](int64_t k) {
        return &panels[(r / 16 * panel_depth + k) * 16 + r % 16];
      };
      float* row = &weight[r * columns];
      float scale = 0;
      for (int64_t c = 0; c < columns; ++c) {
        scale = std::max(scale, std::fabs(row[c]) / 127);
      }
      for (int64_t c = 0; c < columns; ++c) {
        if constexpr (kQuantised) {
          const int value = static_cast<int>(std::lround(row[c] / scale));
          reinterpret_cast<uint8_t*>(unit(c / kGroup))[c % kGroup] =
              static_cast<uint8_t>(value + 128);
          row[c] = static_cast<float>(value) * scale;
        } else {
          const scalar_t value(row[c]);
          reinterpret_cast<scalar_t*>(unit(c / kGroup))[c % kGroup] = value;
          row[c] = float(value);
        }
      }
      if (kQuantised) {
        *unit(depth) = scale;
      }
    }
    panel_stride = panel_depth * 16;
  }

  pvt::LinearArgs args() const { return {panels.data(), panel_stride, bias.data()}; }

  Matrix operator()(const Matrix& x) const {
    Matrix out;
    for (const auto& row : x) {
      std::vector<double> sums(bias.begin(), bias.end());
      for (size_t o = 0; o < sums.size(); ++o) {
        for (size_t i = 0; i < row.size(); ++i) {
          sums[o] += row[i] * weight[o * row.size() + i];
        }
      }
      out.push_back(sums);
    }
    return out;
  }

  int64_t columns, panel_stride;
  std::vector<float> weight, bias, panels;
};

Matrix to_matrix(const std::vector<float>& values, int64_t rows, int64_t columns) {
  Matrix matrix(rows, std::vector<double>(columns));
  for (int64_t i = 0; i < rows * columns; ++i) {
    matrix[i / columns][i % columns] = values[i];
  }
  return matrix;
}

void layer_norm(Matrix& rows, const std::vector<float>& weight, const std::vector<float>& bias,
                double eps) {
  for (auto& row : rows) {
    double mean = 0, variance = 0;
    for (double value : row) {
      mean += value / row.size();
    }
    for (double value : row) {
      variance += (value - mean) * (value - mean) / row.size();
    }
    for (size_t c = 0; c < row.size(); ++c) {
      row[c] = (row[c] - mean) / std::sqrt(variance + eps) * weight[c] + bias[c];
    }
  }
}

void add(Matrix& x, const Matrix& y) {
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t c = 0; c < x[i].size(); ++c) {
      x[i][c] += y[i][c];
    }
  }
}

// Errors relative to 1 + |expected|: of all values together, and of any. Of thousands of values
// that are rounded, one is far off by chance; all of them are not.
struct Tolerance {
  double rms, largest;
};

template <class scalar_t>
constexpr Tolerance kTolerance = {2e-6, 1e-5};
template <>
constexpr Tolerance kTolerance<BFloat16> = {1. / 200, 1. / 32};
template <>
constexpr Tolerance kTolerance<int8_t> = {1. / 50, 1. / 16};

// Nine taps on quantised values, quantised again.
template <class scalar_t>
constexpr Tolerance kConvMlpTolerance = kTolerance<scalar_t>;
template <>
constexpr Tolerance kConvMlpTolerance<int8_t> = {1. / 50, 1. / 8};

// A single product.
template <class scalar_t>
constexpr Tolerance kConvolutionTolerance = kTolerance<scalar_t>;
template <>
constexpr Tolerance kConvolutionTolerance<BFloat16> = {1. / 200, 1. / 64};

void check_close(const std::vector<float>& values, const Matrix& expected, Tolerance tolerance) {
  double squares = 0;
  size_t i = 0;
  for (const auto& row : expected) {
    for (double value : row) {
      const double error = (values[i++] - value) / (1 + std::fabs(value));
      REQUIRE(std::fabs(error) < tolerance.largest);
      squares += error * error;
    }
  }
  REQUIRE(i == values.size());
  REQUIRE(std::sqrt(squares / double(i)) < tolerance.rms);
}

constexpr float kEps = 1e-5f;

void gelu(Matrix& x) {
  for (auto& row : x) {
    for (double& value : row) {
      value *= 0.5 * std::erfc(-value * std::sqrt(0.5));
    }
  }
}

void check_equal(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    REQUIRE(a[i] == b[i]);
  }
}

// An MLP, and what its layers are in double.
template <class scalar_t>
struct Mlp {
  Mlp(int64_t C, int64_t hidden)
      : C(C),
        hidden(hidden),
        fc1(hidden, C, 2),
        fc2(C, hidden, 3),
        norm_weight(random_values<float>(C, 6)),
        norm_bias(random_values<float>(C, 7)) {}

  pvt::MlpArgs args() const {
    return {C, hidden, {norm_weight.data(), norm_bias.data(), kEps}, fc1.args(), fc2.args()};
  }
  Matrix first(Matrix tokens) const {
    layer_norm(tokens, norm_weight, norm_bias, kEps);
    return fc1(tokens);
  }
  Matrix second(Matrix x) const {
    gelu(x);
    return fc2(x);
  }

  int64_t C, hidden;
  Layer<scalar_t> fc1, fc2;
  std::vector<float> norm_weight, norm_bias;
};

struct MlpCase {
  int64_t rows, C, hidden;
};
// The last four: tiles of AMX in pairs and alone, with rows in common, of one step and of more, and
// hidden channels that end in either half of a square.
constexpr MlpCase kMlpCases[] = {{13, 64, 128}, {1, 7, 5},     {25, 33, 300},
                                 {7, 130, 65},  {20, 301, 40}, {50, 64, 301},
                                 {33, 96, 87},  {98, 32, 48},  {65, 64, 256}};

template <class scalar_t, class Level>
void check_mlp() {
  for (const MlpCase& c : kMlpCases) {
    INFO(c.rows, " rows, ", c.C, " channels, ", c.hidden, " hidden");
    const Mlp<scalar_t> mlp(c.C, c.hidden);
    const auto x = random_values<float>(c.rows * c.C, 1);
    Matrix expected = to_matrix(x, c.rows, c.C);
    add(expected, mlp.second(mlp.first(expected)));

    std::vector<float> by_rows = x, by_columns = x;
    Level::template mlp_by_rows<scalar_t>(mlp.args(), by_rows, c.rows);
    check_close(by_rows, expected, kTolerance<scalar_t>);
    Level::template mlp_by_columns<scalar_t>(mlp.args(), by_columns, c.rows);
    check_equal(by_rows, by_columns);
  }
}

// A token with a NaN or an infinity becomes NaN, and no other changes by a bit.
template <class scalar_t, class Level>
void check_bad_token(int64_t rows, int64_t bad_row) {
  const Mlp<scalar_t> mlp(64, 300);
  const auto x = random_values<float>(rows * mlp.C, 1);
  auto expected = x;
  Level::template mlp_by_rows<scalar_t>(mlp.args(), expected, rows);
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
        std::numeric_limits<float>::infinity()}) {
    auto out = x;
    out[bad_row * mlp.C + 3] = bad;
    Level::template mlp_by_rows<scalar_t>(mlp.args(), out, rows);
    for (int64_t i = 0; i < rows * mlp.C; ++i) {
      REQUIRE((i / mlp.C == bad_row ? std::isnan(out[i]) : out[i] == expected[i]));
    }
  }
}

// A 3 x 3 depthwise convolution of tokens on a grid, zeros around it.   taps: [3, 3, channels]
Matrix depthwise(const Matrix& x, int64_t H, int64_t W, const std::vector<float>& taps,
                 const std::vector<float>& bias) {
  const size_t channels = bias.size();
  Matrix out(x.size(), std::vector<double>(bias.begin(), bias.end()));
  for (int64_t token = 0; token < H * W; ++token) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t y = token / W + tap / 3 - 1, w = token % W + tap % 3 - 1;
      for (size_t c = 0; c < channels && y >= 0 && y < H && w >= 0 && w < W; ++c) {
        out[token][c] += x[y * W + w][c] * taps[tap * channels + c];
      }
    }
  }
  return out;
}

struct ConvMlpCase {
  int64_t H, W, C, hidden;
  bool relu;
};
constexpr ConvMlpCase kConvMlpCases[] = {{5, 6, 64, 128, false},
                                         {1, 1, 7, 5, true},
                                         {4, 33, 33, 300, true},
                                         {9, 1, 20, 65, false}};

template <class scalar_t, class Level>
void check_conv_mlp() {
  for (const ConvMlpCase& c : kConvMlpCases) {
    INFO(c.H, " x ", c.W, ", ", c.C, " channels, ", c.hidden, " hidden");
    const Mlp<scalar_t> mlp(c.C, c.hidden);
    const auto taps = random_values<float>(9 * c.hidden, 8, 1. / 3);
    const auto conv_bias = random_values<float>(c.hidden, 9);
    const pvt::ConvMlpArgs args{mlp.args(), c.H, c.W, c.relu, taps.data(), conv_bias.data()};
    const auto x = random_values<float>(c.H * c.W * c.C, 1);
    Matrix expected = to_matrix(x, c.H * c.W, c.C), hidden = mlp.first(expected);
    for (auto& row : hidden) {
      for (double& value : row) {
        value = c.relu ? std::max(value, 0.) : value;
      }
    }
    add(expected, mlp.second(depthwise(hidden, c.H, c.W, taps, conv_bias)));

    std::vector<float> whole = x, in_bands = x, by_columns = x;
    Level::template conv_mlp_in_bands<scalar_t>(args, whole, 1);
    check_close(whole, expected, kConvMlpTolerance<scalar_t>);
    Level::template conv_mlp_in_bands<scalar_t>(args, in_bands, std::min<int64_t>(3, c.H));
    check_equal(in_bands, whole);
    Level::template conv_mlp_by_columns<scalar_t>(args, by_columns);
    check_equal(by_columns, whole);
  }
}

struct AttentionCase {
  int64_t rows, num_heads, head_dim, kv_len;
};
constexpr AttentionCase kAttentionCases[] = {{13, 1, 64, 49},
                                             {1, 3, 5, 1},
                                             {7, 2, 33, 20},
                                             {9, 3, 8, 17},
                                             {35, 2, 40, 300}};

template <class scalar_t, class Level>
void check_attention() {
  for (const AttentionCase& c : kAttentionCases) {
    INFO(c.rows, " rows, ", c.num_heads, " heads of ", c.head_dim, ", ", c.kv_len, " keys");
    const int64_t C = c.num_heads * c.head_dim;
    const auto x = random_values<float>(c.rows * C, 1);
    const auto kv = random_values<float>(c.kv_len * 2 * C, 2);
    const Layer<scalar_t> q(C, C, 3), proj(C, C, 4);
    const auto norm_weight = random_values<float>(C, 7), norm_bias = random_values<float>(C, 8);
    const float scale = 1 / std::sqrt(float(c.head_dim));
    const pvt::AttentionArgs args{C,          c.num_heads,
                                  c.head_dim, c.kv_len,
                                  scale,      {norm_weight.data(), norm_bias.data(), kEps},
                                  q.args(),   proj.args()};

    Matrix expected = to_matrix(x, c.rows, C), tokens = expected;
    layer_norm(tokens, norm_weight, norm_bias, kEps);
    const Matrix queries = q(tokens), keys = to_matrix(kv, c.kv_len, 2 * C);
    Matrix heads(c.rows, std::vector<double>(C, 0.0));
    for (int64_t i = 0; i < c.rows; ++i) {
      for (int64_t h = 0; h < C; h += c.head_dim) {
        double total = 0;
        for (int64_t j = 0; j < c.kv_len; ++j) {
          double score = 0;
          for (int64_t d = h; d < h + c.head_dim; ++d) {
            score += queries[i][d] * keys[j][d];
          }
          const double p = std::exp(scale * score);
          total += p;
          for (int64_t d = h; d < h + c.head_dim; ++d) {
            heads[i][d] += p * keys[j][C + d];
          }
        }
        for (int64_t d = h; d < h + c.head_dim; ++d) {
          heads[i][d] /= total;
        }
      }
    }
    add(expected, proj(heads));

    std::vector<float> out = x;
    Level::template attention<scalar_t>(args, kv, out, c.rows);
    check_close(out, expected, kTolerance<scalar_t>);
    if (c.head_dim % 4 == 0) {
      out = x;
      Level::template folded_attention<scalar_t>(args, kv, out, c.rows);
      check_close(out, expected, kTolerance<scalar_t>);
    }
  }
}

struct PatchCase {
  int64_t images, C_in, H, W, C, kernel_size, stride, padding;
};
constexpr PatchCase kPatchCases[] = {{1, 3, 9, 8, 20, 4, 4, 0},
                                     {2, 33, 5, 4, 65, 3, 2, 1},
                                     {2, 3, 13, 18, 9, 7, 4, 3},
                                     {1, 2, 1, 2, 5, 3, 5, 4},
                                     {1, 150, 3, 3, 7, 2, 1, 1}};

// Of tokens after a LayerNorm, or of an image that comes channel by channel.
template <class scalar_t, class Level>
void check_convolution(bool image) {
  for (const PatchCase& c : kPatchCases) {
    INFO(c.H, " x ", c.W, " x ", c.C_in, ", kernel ", c.kernel_size);
    const int64_t K = c.kernel_size, depth = K * K * c.C_in;
    const auto x = random_values<float>(c.images * c.H * c.W * c.C_in, 1);
    const Layer<scalar_t> conv(c.C, depth, 2);
    const auto norm_weight = random_values<float>(c.C_in, 3);
    const auto norm_bias = random_values<float>(c.C_in, 4);
    pvt::PatchArgs args{};
    args.H = c.H, args.W = c.W, args.C_in = c.C_in, args.C_out = c.C;
    args.out_H = (c.H + 2 * c.padding - K) / c.stride + 1;
    args.out_W = (c.W + 2 * c.padding - K) / c.stride + 1;
    args.kernel_size = K, args.stride = c.stride, args.padding = c.padding;
    args.batch_stride = c.H * c.W * c.C_in, args.row_stride = c.W * c.C_in;
    args.column_stride = c.C_in, args.channel_stride = 1;
    args.conv = conv.args();

    Matrix tokens = to_matrix(x, c.images * c.H * c.W, c.C_in), patches;
    if (image) {
      args.row_stride = c.W, args.column_stride = 1, args.channel_stride = c.H * c.W;
      for (size_t i = 0; i < tokens.size(); ++i) {
        const int64_t b = int64_t(i) / (c.H * c.W), pixel = int64_t(i) % (c.H * c.W);
        for (int64_t channel = 0; channel < c.C_in; ++channel) {
          tokens[i][channel] = x[(b * c.C_in + channel) * c.H * c.W + pixel];
        }
      }
    } else {
      args.input_norm = {norm_weight.data(), norm_bias.data(), kEps};
      layer_norm(tokens, norm_weight, norm_bias, kEps);
    }
    for (int64_t row = 0; row < c.images * args.out_H * args.out_W; ++row) {
      const int64_t b = row / (args.out_H * args.out_W), y = row / args.out_W % args.out_H;
      std::vector<double> patch;
      for (int64_t t = 0; t < K * K; ++t) {
        const int64_t in_y = y * c.stride - c.padding + t / K;
        const int64_t in_x = row % args.out_W * c.stride - c.padding + t % K;
        const bool inside = in_y >= 0 && in_y < c.H && in_x >= 0 && in_x < c.W;
        for (int64_t channel = 0; channel < c.C_in; ++channel) {
          patch.push_back(inside ? tokens[(b * c.H + in_y) * c.W + in_x][channel] : 0.0);
        }
      }
      patches.push_back(patch);
    }
    check_close(Level::template convolve<scalar_t>(args, x, int64_t(patches.size())), conv(patches),
                kConvolutionTolerance<scalar_t>);
  }
}

struct PoolCase {
  int64_t H, W, C, pool_size;
};
constexpr PoolCase kPoolCases[] = {{14, 14, 32, 7}, {9, 11, 21, 4}, {2, 3, 5, 7}, {1, 40, 16, 3}};

template <class Level>
void check_pooling() {
  for (const PoolCase& c : kPoolCases) {
    INFO(c.H, " x ", c.W, ", ", c.C, " channels to ", c.pool_size);
    const auto x = random_values<float>(c.H * c.W * c.C, 1);
    const auto norm_weight = random_values<float>(c.C, 2), norm_bias = random_values<float>(c.C, 3);
    const pvt::PoolArgs args{
        c.H, c.W, c.C, c.pool_size, {norm_weight.data(), norm_bias.data(), kEps}};
    Matrix tokens = to_matrix(x, c.H * c.W, c.C), expected;
    layer_norm(tokens, norm_weight, norm_bias, kEps);
    for (int64_t cell = 0; cell < c.pool_size * c.pool_size; ++cell) {
      const int64_t y = cell / c.pool_size, w = cell % c.pool_size;
      std::vector<double> sum(c.C, 0.);
      int64_t count = 0;
      for (int64_t token = 0; token < c.H * c.W; ++token) {
        // Cell y is the interval [y, y + 1) H / P: its window, every row that it touches.
        const int64_t row = token / c.W, column = token % c.W, P = c.pool_size;
        if ((row + 1) * P > y * c.H && row * P < (y + 1) * c.H && (column + 1) * P > w * c.W &&
            column * P < (w + 1) * c.W) {
          ++count;
          for (int64_t i = 0; i < c.C; ++i) {
            sum[i] += tokens[token][i];
          }
        }
      }
      for (double& value : sum) {
        value /= static_cast<double>(count);
      }
      expected.push_back(sum);
    }
    check_close(Level::pool(args, x), expected, kTolerance<float>);
  }
}

struct HeadCase {
  int64_t rows, C, num_classes;
};
constexpr HeadCase kHeadCases[] = {{1, 64, 10}, {8, 33, 21}, {5, 3, 1}, {4, 96, 8}};

template <class Level>
void check_head() {
  for (const HeadCase& c : kHeadCases) {
    INFO(c.rows, " rows, ", c.C, " channels, ", c.num_classes, " classes");
    const Layer<float> layer(c.num_classes, c.C, 2);
    const auto x = random_values<float>(c.rows * c.C, 1);
    const auto scores = Level::head(x, c.rows, c.C, layer.weight, layer.bias);
    check_close(scores, layer(to_matrix(x, c.rows, c.C)), kTolerance<float>);
    for (int64_t row = 0; row < c.rows; ++row) {  // each row alone, bit for bit
      const auto at = [](const std::vector<float>& values, int64_t size, int64_t i) {
        return std::vector<float>(values.begin() + i * size, values.begin() + (i + 1) * size);
      };
      check_equal(Level::head(at(x, c.C, row), 1, c.C, layer.weight, layer.bias),
                  at(scores, c.num_classes, row));
    }
  }
}

template <class scalar_t, class Level>
void check_dtype() {
  check_mlp<scalar_t, Level>();
  check_bad_token<scalar_t, Level>(13, 5);
  check_bad_token<scalar_t, Level>(70, 20);
  check_conv_mlp<scalar_t, Level>();
  check_attention<scalar_t, Level>();
  check_convolution<scalar_t, Level>(/*image=*/false);
  check_convolution<scalar_t, Level>(/*image=*/true);
}

template <class Level>
void check_level() {
  check_mlp<float, Level>();
  check_dtype<pvt::PackedFloat, Level>();
  check_dtype<BFloat16, Level>();
  check_dtype<int8_t, Level>();
  check_pooling<Level>();
  check_head<Level>();
}

#define CHECK_BODIES(level) check_level<pvt::level::Bodies>();

PVT_TEST_EVERY_LEVEL("packed operators", CHECK_BODIES)

}  // namespace
