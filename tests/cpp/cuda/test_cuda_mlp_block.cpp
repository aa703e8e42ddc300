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

  std::vector<double> branch(int64_t row) const {
    std::vector<double> hidden =
        linear(layer_norm(&x[row * C], C, norm_weight, norm_bias, 1e-6), fc1_weight, fc1_bias);
    for (double& value : hidden)
      value = exact_gelu(value);
    return linear(hidden, fc2_weight, fc2_bias);
  }
};

template <class Config>
void check_mlp(int64_t rows, int64_t hidden, bool resident, int64_t blocks) {
  using scalar_t = typename Config::scalar_t;
  constexpr int C = Config::C;
  const Mlp mlp = Mlp::random<scalar_t>(rows, C, hidden);
  Bits<scalar_t> x(mlp.x);
  const Bits<scalar_t> fc1 = packed<scalar_t>(mlp.fc1_weight, hidden, C);
  const Bits<scalar_t> fc2 = packed<scalar_t>(mlp.fc2_weight, C, hidden);
  const std::vector<float> norm_weight = floats(mlp.norm_weight), norm_bias = floats(mlp.norm_bias);
  const std::vector<float> fc1_bias = floats(mlp.fc1_bias), fc2_bias = floats(mlp.fc2_bias);
  const MlpBlockArgs args{
      x.data(),        rows,        norm_weight.data(), norm_bias.data(),        1e-6f, fc1.bytes(),
      fc1_bias.data(), fc2.bytes(), fc2_bias.data(),    static_cast<int>(hidden)};
  const int64_t slots = resident ? hidden / Config::kHidden : Config::kSlots;
  const int64_t conflicts =
      launch_on_host<Config::kWarps>(blocks, slots * Config::kSlotBytes, 11, [&](auto& block) {
        if (resident) {
          mlp_block_resident<Config>(block, args);
        } else {
          mlp_block_streamed<Config>(block, args);
        }
      });
  CHECK(conflicts == 0);
  Error error;
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<double> branch = mlp.branch(row);
    for (int64_t c = 0; c < C; ++c) {
      error.add(x[row * C + c], mlp.x[row * C + c] + branch[c], branch[c]);
    }
  }
  CHECK(error.relative() < kBound<scalar_t>);
}

template <class scalar_t, int C, int kTiles, int kWarps, int kHidden, int kSlots>
void check_streamed(int64_t rows, int64_t hidden) {
  using Config = MlpBlockConfig<scalar_t, C, kTiles, kWarps, kHidden, kSlots>;
  check_mlp<Config>(rows, hidden, false, (rows + Config::kRows - 1) / Config::kRows);
}

}  // namespace

TEST_CASE("mlp_block_: weights pass by") {
  check_streamed<BFloat16, 64, 2, 8, 64, 3>(259, 512);
  check_streamed<Half, 64, 2, 8, 64, 3>(100, 256);
  check_streamed<BFloat16, 128, 2, 8, 32, 3>(41, 256);
  check_streamed<Half, 32, 2, 4, 64, 2>(1, 128);
  check_streamed<BFloat16, 160, 1, 8, 32, 3>(16, 160);
  check_streamed<BFloat16, 256, 1, 8, 32, 2>(17, 128);
}

TEST_CASE("mlp_block_: fewer chunks of weights than slots") {
  check_streamed<BFloat16, 32, 1, 4, 32, 4>(20, 32);
  check_streamed<BFloat16, 32, 1, 4, 32, 4>(20, 64);
}

TEST_CASE("mlp_block_: weights stay, tokens pass by") {
  using Config = MlpBlockConfig<BFloat16, 64, 2, 8, 64, 1>;
  check_mlp<Config>(3 * Config::kRows + 5, 128, true, 2);
  check_mlp<Config>(1, 64, true, 1);
}

}  // namespace pvt::cuda
