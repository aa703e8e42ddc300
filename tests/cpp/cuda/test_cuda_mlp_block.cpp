// The CUDA kernels of mlp_block_, run on the CPU against float64.
#include "cuda/cuda_test.h"
#include "cuda/mlp_block_impl.h"

namespace pvt::cuda {
namespace {

struct Mlp {
  int64_t rows, C, hidden;
  std::vector<double> x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;

  template <class scalar_t>
  static Mlp random(int64_t rows, int64_t C, int64_t hidden) {
    Mlp mlp{rows, C, hidden, {}, {}, {}, {}, {}, {}, {}};
    mlp.x = random_numbers<scalar_t>(rows * C, 1, 2, 0.5);
    mlp.norm_weight = random_numbers<scalar_t>(C, 2, 0.1, 1);
    mlp.norm_bias = random_numbers<scalar_t>(C, 3, 0.1);
    mlp.fc1_weight = random_numbers<scalar_t>(hidden * C, 4, 1 / std::sqrt(C));
    mlp.fc1_bias = random_numbers<scalar_t>(hidden, 5, 0.1);
    mlp.fc2_weight = random_numbers<scalar_t>(C * hidden, 6, 2 / std::sqrt(hidden));
    mlp.fc2_bias = random_numbers<scalar_t>(C, 7, 0.1);
    return mlp;
  }

  // The row's result.
  template <class Round>
  std::vector<double> row(int64_t row, const Round& round) const {
    std::vector<double> hidden = round(linear(
        round(layer_norm(&x[row * C], C, norm_weight, norm_bias, 1e-6)), fc1_weight, fc1_bias));
    for (double& value : hidden)
      value = exact_gelu(value);
    std::vector<double> result = round(linear(round(hidden), fc2_weight, fc2_bias));
    for (int64_t c = 0; c < C; ++c)
      result[c] += x[row * C + c];
    return round(result);
  }
};

// `staying`: so many blocks share the rows, and weights stay with them.
template <class Config>
void check_mlp(int64_t rows, int64_t hidden, int64_t staying = 0) {
  using scalar_t = typename Config::scalar_t;
  constexpr int C = Config::C;
  const Mlp mlp = Mlp::random<scalar_t>(rows, C, hidden);
  Bits<scalar_t> x(mlp.x);
  const Bits<scalar_t> fc1 = packed<scalar_t>(mlp.fc1_weight, hidden, C);
  const Bits<scalar_t> fc2 = packed<scalar_t>(mlp.fc2_weight, C, hidden);
  const Floats norm_weight(mlp.norm_weight), norm_bias(mlp.norm_bias);
  const Floats fc1_bias(mlp.fc1_bias), fc2_bias(mlp.fc2_bias);
  const MlpBlockArgs args{
      x.data(),        rows,        norm_weight.data(), norm_bias.data(),        1e-6f, fc1.bytes(),
      fc1_bias.data(), fc2.bytes(), fc2_bias.data(),    static_cast<int>(hidden)};
  const int64_t blocks = staying > 0 ? staying : (rows + Config::kRows - 1) / Config::kRows;
  const int64_t conflicts = launch_on_host<Config::kWarps>(
      blocks, Config::kSlots * Config::kSlotBytes, 11, [&](auto& block) {
        if (staying > 0) {
          mlp_block_staying<Config>(block, args);
        } else {
          mlp_block<Config>(block, args);
        }
      });
  CHECK(conflicts == 0);
  Errors errors;
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<double> expected = mlp.row(row, Exact());
    const std::vector<double> parts = mlp.row(row, Rounded<scalar_t>());
    for (int64_t c = 0; c < C; ++c)
      errors.add(x[row * C + c], parts[c], expected[c]);
  }
  CHECK(errors.ratio() < kMaxErrorRatio);
}

}  // namespace

TEST_CASE("gelu: its bound holds everywhere") {
  const auto error = [](float x) {
    const HostWarp::Float result = gelu<HostWarp>(HostWarp::Float(x));
    return std::abs(result[0] - exact_gelu(x));
  };
  double most = 0;
  for (int i = -1000000; i <= 1000000; ++i)
    most = std::max(most, error(i * 1e-5f));
  CHECK(most < 3.6e-5);
  CHECK(most > 3e-5);  // the bound is as stated, no less
  for (float x = 10; x < 3e38f; x *= 1.01f) {
    most = std::max(error(x) / x, error(-x));
    CHECK(most < 1e-20);  // x and zero; the exact value at -10 is -8e-23
  }
  const float infinity = INFINITY;
  CHECK(gelu<HostWarp>(HostWarp::Float(infinity))[0] == infinity);
  CHECK(std::isnan(gelu<HostWarp>(HostWarp::Float(NAN))[0]));
}

TEST_CASE("mlp_block_: weights pass by") {
  check_mlp<MlpBlockConfig<BFloat16, 64, 2, 8, 64, 3>>(259, 512);
  check_mlp<MlpBlockConfig<Half, 64, 2, 8, 64, 3>>(100, 256);
  check_mlp<MlpBlockConfig<BFloat16, 128, 2, 8, 32, 3>>(41, 256);
  check_mlp<MlpBlockConfig<Half, 32, 2, 4, 64, 2>>(1, 192);
  check_mlp<MlpBlockConfig<BFloat16, 160, 1, 8, 32, 3>>(16, 160);
  check_mlp<MlpBlockConfig<BFloat16, 256, 1, 8, 32, 2>>(17, 128);
}

TEST_CASE("mlp_block_: fewer chunks of weights than slots") {
  check_mlp<MlpBlockConfig<BFloat16, 32, 1, 4, 32, 4>>(20, 32);
  check_mlp<MlpBlockConfig<Half, 32, 1, 4, 32, 4>>(20, 64);
}

TEST_CASE("mlp_block_: weights stay") {
  check_mlp<MlpBlockConfig<BFloat16, 64, 2, 8, 64, 8>>(300, 512, 1);
  check_mlp<MlpBlockConfig<Half, 32, 1, 4, 32, 4>>(3 * 128 + 5, 64, 2);
  check_mlp<MlpBlockConfig<Half, 32, 1, 4, 32, 2>>(1, 32, 2);
}

}  // namespace pvt::cuda
