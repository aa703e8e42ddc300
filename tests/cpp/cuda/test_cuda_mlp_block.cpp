// The CUDA kernels of mlp_block_, run on the CPU against float64.
#include "cuda/cuda_test.h"
#include "cuda/host_warpgroup.h"
#include "cuda/linear_test.h"
#include "cuda/linear_warpgroup_impl.h"
#include "cuda/mlp_block_impl.h"
#include "cuda/mlp_warpgroup_impl.h"

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

// x and the parameters where a kernel finds them.
template <class scalar_t>
struct MlpMemory {
  explicit MlpMemory(const Mlp& mlp)
      : x(mlp.x),
        fc1(packed<scalar_t>(mlp.fc1_weight, mlp.hidden, mlp.C)),
        fc2(packed<scalar_t>(mlp.fc2_weight, mlp.C, mlp.hidden)),
        norm_weight(mlp.norm_weight),
        norm_bias(mlp.norm_bias),
        fc1_bias(mlp.fc1_bias),
        fc2_bias(mlp.fc2_bias) {}

  // Valid as long as this is.
  MlpBlockArgs args(const Mlp& mlp) {
    return {x.data(),
            mlp.rows,
            norm_weight.data(),
            norm_bias.data(),
            1e-6f,
            fc1.bytes(),
            fc1_bias.data(),
            fc2.bytes(),
            fc2_bias.data(),
            static_cast<int>(mlp.hidden)};
  }

  // The error of x beside that of the parts of the operator.
  double error_ratio(const Mlp& mlp) const {
    Errors errors;
    for (int64_t row = 0; row < mlp.rows; ++row) {
      const std::vector<double> expected = mlp.row(row, Exact());
      const std::vector<double> parts = mlp.row(row, Rounded<scalar_t>());
      for (int64_t c = 0; c < mlp.C; ++c)
        errors.add(x[row * mlp.C + c], parts[c], expected[c]);
    }
    return errors.ratio();
  }

  Bits<scalar_t> x, fc1, fc2;
  Floats norm_weight, norm_bias, fc1_bias, fc2_bias;
};

// `staying`: so many blocks share the rows, and weights stay with them.
template <class Config>
void check_mlp(int64_t rows, int64_t hidden, int64_t staying = 0) {
  using scalar_t = typename Config::scalar_t;
  const Mlp mlp = Mlp::random<scalar_t>(rows, Config::C, hidden);
  MlpMemory<scalar_t> memory(mlp);
  const MlpBlockArgs args = memory.args(mlp);
  const int64_t blocks = staying > 0 ? staying : (rows + Config::kRows - 1) / Config::kRows;
  const int64_t conflicts =
      launch_on_host<Config>(staying > 0 ? "mlp_block_staying" : "mlp_block", blocks,
                             Config::kSlots * Config::kSlotBytes, 11, [&](auto& block) {
                               if (staying > 0) {
                                 mlp_block_staying<Config>(block, args);
                               } else {
                                 mlp_block<Config>(block, args);
                               }
                             });
  CHECK(conflicts == 0);
  CHECK(memory.error_ratio(mlp) < kMaxErrorRatio);
}

// The two kernels with the hidden layer in memory. Blocks have that many columns.
template <int C, class Fc1, class Fc2>
void check_layers(int64_t rows, int hidden, int fc1_columns = Fc1::kColumns,
                  int fc2_columns = Fc2::kColumns) {
  using scalar_t = typename Fc1::scalar_t;
  const Mlp mlp = Mlp::random<scalar_t>(rows, C, hidden);
  MlpMemory<scalar_t> memory(mlp);
  Bits<scalar_t> between(std::vector<double>(rows * hidden, NAN));
  ArgsOf<Fc1> fc1{};
  fc1.x = memory.x.data(), fc1.rows = rows;
  fc1.norm_weight = memory.norm_weight.data(), fc1.norm_bias = memory.norm_bias.data();
  fc1.eps = 1e-6f;
  fc1.weight = memory.fc1.bytes(), fc1.bias = memory.fc1_bias.data();
  fc1.out = between.data(), fc1.columns = hidden;
  if constexpr (std::is_same_v<decltype(fc1), StreamedLinearArgs>)
    fc1.depth = C;
  run_on_host<Fc1>(fc1, fc1_columns);
  StreamedLinearArgs fc2{};
  fc2.x = between.data(), fc2.rows = rows, fc2.depth = hidden;
  fc2.weight = memory.fc2.bytes(), fc2.bias = memory.fc2_bias.data();
  fc2.out = memory.x.data(), fc2.columns = C;
  run_on_host<Fc2>(fc2, fc2_columns);
  CAPTURE(rows);
  CHECK(memory.error_ratio(mlp) < kMaxErrorRatio);
}

// `staying`: as check_mlp().
template <class Config>
void check_warpgroups(int64_t rows, int64_t hidden, int64_t staying = 0) {
  using scalar_t = typename Config::scalar_t;
  const Mlp mlp = Mlp::random<scalar_t>(rows, Config::C, hidden);
  MlpMemory<scalar_t> memory(mlp);
  Blocks fc1(memory.fc1.bytes(), hidden, Config::C, Follow::kInputs);
  Blocks fc2(memory.fc2.bytes(), Config::C, hidden, Follow::kColumns);
  const MlpWarpgroupArgs args{memory.args(mlp), fc1.data(), fc2.data()};
  const int64_t blocks = staying > 0 ? staying : (rows + Config::kRows - 1) / Config::kRows;
  const int64_t conflicts =
      launch_on_host<Config, HostWarpgroup>(staying > 0 ? "mlp_warpgroup_staying" : "mlp_warpgroup",
                                            blocks, Config::kSharedBytes, 13, [&](auto& block) {
                                              if (staying > 0) {
                                                mlp_warpgroup_staying<Config>(block, args);
                                              } else {
                                                mlp_warpgroup<Config>(block, args);
                                              }
                                            });
  CHECK(conflicts == 0);
  CHECK(memory.error_ratio(mlp) < kMaxErrorRatio);
}

// The two kernels of warpgroups with the hidden layer in memory. fc1's blocks have that many
// columns.
template <class Fc1, class Fc2>
void check_warpgroup_layers(int64_t rows, int hidden, int fc1_columns) {
  using scalar_t = typename Fc1::scalar_t;
  constexpr int C = Fc1::C;
  const Mlp mlp = Mlp::random<scalar_t>(rows, C, hidden);
  MlpMemory<scalar_t> memory(mlp);
  Bits<scalar_t> between(std::vector<double>(rows * hidden, NAN));
  Blocks fc1_blocks(memory.fc1.bytes(), hidden, C, kStayingFollow);
  Blocks fc2_blocks(memory.fc2.bytes(), C, hidden, kPassingFollow);
  WarpgroupLinearArgs fc1{};
  fc1.x = memory.x.data(), fc1.rows = rows, fc1.depth = C;
  fc1.norm_weight = memory.norm_weight.data(), fc1.norm_bias = memory.norm_bias.data();
  fc1.eps = 1e-6f;
  fc1.weight = fc1_blocks.data(), fc1.bias = memory.fc1_bias.data();
  fc1.out = between.data(), fc1.columns = hidden, fc1.block_columns = fc1_columns;
  const auto tiles = [&](int64_t kRows) { return (rows + kRows - 1) / kRows; };
  int64_t conflicts = launch_on_host<Fc1, HostWarpgroup>(
      "staying_linear", tiles(Fc1::kRows) * ((hidden + fc1_columns - 1) / fc1_columns),
      Fc1::kSharedBytes, 14, [&](auto& block) { staying_linear<Fc1>(block, fc1); });
  WarpgroupLinearArgs fc2{};
  fc2.x = between.data(), fc2.rows = rows, fc2.depth = hidden;
  fc2.weight = fc2_blocks.data(), fc2.bias = memory.fc2_bias.data();
  fc2.out = memory.x.data(), fc2.columns = C;
  conflicts += launch_on_host<Fc2, HostWarpgroup>(
      "passing_linear", tiles(Fc2::kRows) * (C / Fc2::kColumns), Fc2::kSharedBytes, 15,
      [&](auto& block) { passing_linear<Fc2>(block, fc2); });
  CHECK(conflicts == 0);
  CHECK(memory.error_ratio(mlp) < kMaxErrorRatio);
}

template <class scalar_t, int C, int kDepth, int kSlots>
using NarrowFc1 = LinearConfig<scalar_t, C, Source::kTokens, Then::kGelu, 4, kDepth, kSlots>;
template <class scalar_t, int C, int kWays>
using SplitFc1 = SplitLinearConfig<scalar_t, C, Source::kTokens, Then::kGelu, 2, kWays, 3>;
template <class scalar_t>
using SplitFc2 = SplitStreamedConfig<scalar_t, Then::kAdd, 2, 8, 4>;
template <class scalar_t>
using NarrowFc2 = StreamedLinearConfig<scalar_t, false, Then::kAdd, 1, 1, 4, 128, 4>;
template <class scalar_t>
using WideFc1 = StreamedLinearConfig<scalar_t, true, Then::kGelu, 2, 4, 8, 32, 4>;
template <class scalar_t, int kStrips>
using WideFc2 = StreamedLinearConfig<scalar_t, false, Then::kAdd, 2, kStrips, 8, 32, 4>;

// most, least: bounds of the greatest error, which is as stated and no less
// half_unit: in the last place of scalar_t, of 1; of results of `from` and more errors are smaller
template <class scalar_t>
void check_gelu(double most, double least, double half_unit, double from) {
  const auto result = [](float x) { return gelu<scalar_t, HostWarp>(HostWarp::Float(x))[0]; };
  double greatest = 0;
  bool are_precise = true;
  for (int i = -1000000; i <= 1000000; ++i) {
    const float x = i * 1e-5f;
    const double exact = exact_gelu(x), error = std::abs(result(x) - exact);
    greatest = std::max(greatest, error);
    are_precise &= std::abs(exact) < from || error < std::exp2(std::ilogb(exact)) * half_unit;
    are_precise &= std::abs(exact) < 1e-6 || error < 0.31 * std::abs(exact);
  }
  CHECK(greatest < most);
  CHECK(greatest > least);
  CHECK(are_precise);
  for (float x = 10; x < 3e38f; x *= 1.01f) {
    CHECK(result(x) == x);
    CHECK(std::abs(result(-x)) < 1e-20);  // the exact value at -10 is -8e-23
  }
  CHECK(result(0) == 0);
  CHECK(std::isnan(result(NAN)));
}

}  // namespace

TEST_CASE("gelu: its bounds hold everywhere") {
  check_gelu<BFloat16>(5.6e-5, 5.4e-5, /*half_unit=*/1. / 512, /*from=*/1. / 32);
  check_gelu<Half>(1e-6, 6e-7, 1. / 4096, 1. / 512);
}

TEST_CASE("mlp_block_: weights pass by") {
  check_mlp<MlpBlockConfig<BFloat16, 64, 2, 8, 64, 3>>(259, 512);
  check_mlp<MlpBlockConfig<Half, 64, 2, 8, 64, 3>>(100, 256);
  check_mlp<MlpBlockConfig<BFloat16, 128, 2, 8, 32, 3>>(41, 256);
  check_mlp<MlpBlockConfig<Half, 32, 2, 4, 64, 2>>(1, 192);
  check_mlp<MlpBlockConfig<Half, 32, 2, 8, 64, 3>>(33, 256);
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
  check_mlp<MlpBlockConfig<BFloat16, 32, 2, 8, 64, 8>>(300, 256, 1);
  check_mlp<MlpBlockConfig<Half, 32, 1, 4, 32, 2>>(1, 32, 2);
}

TEST_CASE("mlp_block_: warpgroups, weights pass by or stay") {
  check_warpgroups<MlpWarpgroupConfig<BFloat16, 128, 8, 6>>(200, 512);
  check_warpgroups<MlpWarpgroupConfig<Half, 128, 8, 6>>(17, 64);
  check_warpgroups<MlpWarpgroupConfig<Half, 128, 8, 6>>(130, 192);
  check_warpgroups<MlpWarpgroupConfig<Half, 64, 16, 8>>(100, 640);
  check_warpgroups<MlpWarpgroupConfig<BFloat16, 64, 16, 8>>(300, 512, 1);
  check_warpgroups<MlpWarpgroupConfig<Half, 64, 12, 3>>(3 * 192 + 5, 128, 2);
}

// Odd numbers of 64 columns and inputs, more of them than slots.
TEST_CASE("mlp_block_: two kernels of warpgroups") {
  check_warpgroup_layers<StayingLinearConfig<BFloat16, 320, Then::kGelu, 8, 5>,
                         PassingLinearConfig<BFloat16, Then::kAdd, 5, 8, 4>>(140, 576, 448);
  check_warpgroup_layers<StayingLinearConfig<Half, 512, Then::kGelu, 8, 3>,
                         PassingLinearConfig<Half, Then::kAdd, 4, 8, 4>>(33, 448, 320);
  check_warpgroup_layers<StayingLinearConfig<BFloat16, 64, Then::kGelu, 4, 4>,
                         PassingLinearConfig<BFloat16, Then::kAdd, 1, 4, 4>>(64, 256, 128);
  check_warpgroup_layers<StayingLinearConfig<Half, 64, Then::kGelu, 12, 5>,
                         PassingLinearConfig<Half, Then::kAdd, 1, 12, 4>>(20, 384, 384);
  check_warpgroup_layers<StayingLinearConfig<BFloat16, 128, Then::kGelu, 12, 5>,
                         PassingLinearConfig<BFloat16, Then::kAdd, 2, 12, 4>>(200, 384, 192);
}

TEST_CASE("mlp_block_: two kernels") {
  check_layers<320, NarrowFc1<BFloat16, 320, 160, 2>, NarrowFc2<BFloat16>>(70, 256);
  check_layers<128, NarrowFc1<Half, 128, 128, 3>, NarrowFc2<Half>>(1, 640, 256, 96);
  check_layers<32, NarrowFc1<BFloat16, 32, 32, 3>, NarrowFc2<BFloat16>>(64, 128, 128);
  check_layers<64, NarrowFc1<Half, 64, 64, 3>, NarrowFc2<Half>>(17, 256, 64, 64);
  check_layers<160, NarrowFc1<BFloat16, 160, 160, 2>, NarrowFc2<BFloat16>>(9, 128, 64, 96);
  check_layers<256, NarrowFc1<Half, 256, 128, 2>, NarrowFc2<Half>>(20, 128, 128, 64);
  check_layers<512, NarrowFc1<BFloat16, 512, 128, 2>, NarrowFc2<BFloat16>>(5, 256, 64, 128);
}

// Inputs that are not the same number of strips for every warp; more chunks than there are slots.
TEST_CASE("mlp_block_: two kernels whose warps share inputs, few rows") {
  check_layers<64, NarrowFc1<Half, 64, 64, 3>, SplitFc2<Half>>(33, 128);
  check_layers<128, SplitFc1<BFloat16, 128, 4>, SplitFc2<BFloat16>>(17, 640);
  check_layers<160, SplitFc1<Half, 160, 4>, SplitFc2<Half>>(1, 384);
  check_layers<256, SplitFc1<BFloat16, 256, 8>, SplitFc2<BFloat16>>(40, 256);
  check_layers<320, SplitFc1<Half, 320, 8>, SplitFc2<Half>>(35, 1280);
  check_layers<512, SplitFc1<BFloat16, 512, 8>, SplitFc2<BFloat16>>(50, 2048);
}

TEST_CASE("mlp_block_: two kernels, many rows") {
  check_layers<320, WideFc1<BFloat16>, WideFc2<BFloat16, 5>>(259, 256, 128, 320);
  check_layers<512, WideFc1<Half>, WideFc2<Half, 4>>(33, 384, 256, 128);
  check_layers<64, WideFc1<BFloat16>, WideFc2<BFloat16, 2>>(256, 128, 128, 64);
  check_layers<32, WideFc1<Half>, WideFc2<Half, 1>>(40, 256, 128, 32);
}

}  // namespace pvt::cuda
