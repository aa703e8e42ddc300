// The CUDA kernels of pool_kv that no other operator has, run on the CPU against float64.
#include "cuda/cuda_test.h"
#include "cuda/linear_test.h"
#include "cuda/pool_impl.h"

namespace pvt::cuda {
namespace {

template <class Config>
void check_pool(int B, int H, int W, int cells) {
  using scalar_t = typename Config::scalar_t;
  constexpr int C = Config::C;
  const std::vector<double> x = random_numbers<scalar_t>(int64_t{B} * H * W * C, 1, 2, 0.5);
  const std::vector<double> norm_weight = random_numbers<scalar_t>(C, 2, 0.1, 1);
  const std::vector<double> norm_bias = random_numbers<scalar_t>(C, 3, 0.1);
  const int64_t rows = int64_t{B} * cells * cells;
  Bits<scalar_t> tokens(x), out(std::vector<double>(rows * C, NAN));
  const Floats norm_w(norm_weight), norm_b(norm_bias);
  const PoolArgs args{tokens.data(), H, W, cells, norm_w.data(), norm_b.data(), 1e-6f, out.data()};
  const int64_t conflicts = launch_on_host<Config>("pool", rows, Config::kSharedBytes, 16,
                                                   [&](auto& block) { pool<Config>(block, args); });
  CHECK(conflicts == 0);

  Errors errors;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t b = row / cells / cells, i = row / cells % cells, j = row % cells;
    const auto mean = [&](const auto& round) {
      std::vector<double> sums(C);
      int count = 0;
      for (int64_t r = i * H / cells; r < ((i + 1) * H + cells - 1) / cells; ++r) {
        for (int64_t s = j * W / cells; s < ((j + 1) * W + cells - 1) / cells; ++s, ++count) {
          const std::vector<double> unit =
              round(layer_norm(&x[((b * H + r) * W + s) * C], C, norm_weight, norm_bias, 1e-6));
          for (int c = 0; c < C; ++c)
            sums[c] += unit[c];
        }
      }
      for (double& sum : sums)
        sum /= count;
      return round(sums);
    };
    const std::vector<double> expected = mean(Exact()), parts = mean(Rounded<scalar_t>());
    for (int c = 0; c < C; ++c)
      errors.add(out[row * C + c], parts[c], expected[c]);
  }
  CAPTURE(C);
  CAPTURE(H);
  CHECK(errors.ratio() < kMaxErrorRatio);
}

// Keys and values of the GELU of what a norm leaves.
template <class Config>
void check_keys() {
  constexpr int C = Config::C;
  constexpr int64_t kRows = 21, kColumns = 128;
  const std::vector<double> sums = random_numbers<BFloat16>(kRows * C, 1, 2, 0.5);
  const std::vector<double> sums_bias = random_numbers<BFloat16>(C, 2, 0.1);
  const std::vector<double> norm_weight = random_numbers<BFloat16>(C, 3, 0.1, 1);
  const std::vector<double> norm_bias = random_numbers<BFloat16>(C, 4, 0.1);
  const std::vector<double> weight = random_numbers<BFloat16>(kColumns * C, 5, 1 / std::sqrt(C));
  const std::vector<double> bias = random_numbers<BFloat16>(kColumns, 6, 0.1);
  const Bits<BFloat16> out = run_linear<Config>({norm_weight, norm_bias, weight, bias},
                                                Floats(sums).data(), kRows, 1, sums_bias, kColumns);
  Errors errors;
  for (int64_t row = 0; row < kRows; ++row) {
    const auto kv = [&](const auto& round) {
      std::vector<double> cell(&sums[row * C], &sums[row * C] + C);
      for (int64_t c = 0; c < C; ++c)
        cell[c] += sums_bias[c];
      std::vector<double> active =
          round(layer_norm(round(cell).data(), C, norm_weight, norm_bias, 1e-5));
      for (double& value : active)
        value = exact_gelu(value);
      return round(linear(round(active), weight, bias));
    };
    const std::vector<double> expected = kv(Exact()), parts = kv(Rounded<BFloat16>());
    for (int64_t c = 0; c < kColumns; ++c)
      errors.add(out[row * kColumns + c], parts[c], expected[c]);
  }
  CHECK(errors.ratio() < kMaxErrorRatio);
}

}  // namespace

TEST_CASE("pool_kv: averages of cells, fewer and more than the warps' tiles") {
  check_pool<PoolConfig<BFloat16, 64, 4>>(2, 28, 31, 7);
  check_pool<PoolConfig<Half, 128, 4>>(1, 25, 30, 2);  // 195 tokens: more than four tiles
  check_pool<PoolConfig<BFloat16, 320, 4>>(1, 9, 14, 7);
  check_pool<PoolConfig<Half, 512, 4>>(1, 4, 3, 7);  // cells overlap: fewer tokens than cells
}

TEST_CASE("pool_kv: keys and values of the GELU of what a norm leaves") {
  check_keys<Linear<BFloat16, 64, Source::kActiveSums, 4, 64, 3>>();
  check_keys<Linear<BFloat16, 128, Source::kActiveSums, 4, 128, 3>>();
  check_keys<Linear<BFloat16, 320, Source::kActiveSums, 4, 160, 2>>();
  check_keys<Linear<BFloat16, 512, Source::kActiveSums, 4, 128, 2>>();
  check_keys<SplitLinear<BFloat16, 128, Source::kActiveSums, 4>>();
  check_keys<SplitLinear<BFloat16, 320, Source::kActiveSums, 8>>();
  check_keys<SplitLinear<BFloat16, 512, Source::kActiveSums, 8>>();
}

}  // namespace pvt::cuda
