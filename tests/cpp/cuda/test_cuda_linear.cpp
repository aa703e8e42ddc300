// The linear layers that stand in several operators, run on the CPU against float64: q of
// attention_block_, keys and values of all tokens in reduce_kv, the first layer of conv_mlp_block_.
#include "cuda/host_warpgroup.h"
#include "cuda/linear_test.h"
#include "cuda/linear_warpgroup_impl.h"

namespace pvt::cuda {
namespace {

// run_linear() of tokens.
template <class Config>
Bits<typename Config::scalar_t> run_linear(const NormedLinear& layer,
                                           const Bits<typename Config::scalar_t>& tokens,
                                           int64_t rows, int64_t columns,
                                           int block_columns = Config::kColumns) {
  return run_linear<Config>(layer, tokens.bytes(), rows, 0, layer.bias, columns, block_columns);
}

// The arguments of a layer whose weights stream, or are in blocks.
struct StreamedLayer {
  template <class scalar_t>
  StreamedLayer(const NormedLinear& layer, const Bits<scalar_t>& tokens, int64_t rows,
                int64_t columns, int block_columns, const char* weight, Bits<scalar_t>& out)
      : norm_weight(layer.norm_weight), norm_bias(layer.norm_bias), bias(layer.bias) {
    args.x = tokens.bytes(), args.rows = rows;
    args.depth = static_cast<int>(layer.norm_weight.size());
    args.norm_weight = norm_weight.data(), args.norm_bias = norm_bias.data(), args.eps = 1e-5f;
    args.weight = weight, args.bias = bias.data();
    args.out = out.data(), args.columns = static_cast<int>(columns);
    args.block_columns = block_columns;
  }
  int64_t blocks(int64_t rows_of_block) const {
    return (args.rows + rows_of_block - 1) / rows_of_block *
           ((args.columns + args.block_columns - 1) / args.block_columns);
  }

  Floats norm_weight, norm_bias, bias;
  StreamedLinearArgs args{};
};

template <class Config, int C>
Bits<typename Config::scalar_t> run_streamed(const NormedLinear& layer,
                                             const Bits<typename Config::scalar_t>& tokens,
                                             int64_t rows, int64_t columns, int block_columns) {
  using scalar_t = typename Config::scalar_t;
  const Bits<scalar_t> weight = packed<scalar_t>(layer.weight, columns, C);
  Bits<scalar_t> out(std::vector<double>(rows * columns, NAN));
  const StreamedLayer streamed_layer(layer, tokens, rows, columns, block_columns, weight.bytes(),
                                     out);
  run_on_host<Config>(streamed_layer.args, block_columns);
  return out;
}

template <class Config>
Bits<typename Config::scalar_t> run_staying(const NormedLinear& layer,
                                            const Bits<typename Config::scalar_t>& tokens,
                                            int64_t rows, int64_t columns, int block_columns) {
  using scalar_t = typename Config::scalar_t;
  const Bits<scalar_t> weight = packed<scalar_t>(layer.weight, columns, Config::C);
  Blocks blocks(weight.bytes(), columns, Config::C, kStayingFollow);
  Bits<scalar_t> out(std::vector<double>(rows * columns, NAN));
  const StreamedLayer streamed_layer(layer, tokens, rows, columns, block_columns, blocks.data(),
                                     out);
  const int64_t conflicts = launch_on_host<Config, HostWarpgroup>(
      "staying_linear", streamed_layer.blocks(Config::kRows), Config::kSharedBytes, 15,
      [&](auto& block) { staying_linear<Config>(block, streamed_layer.args); });
  CHECK(conflicts == 0);
  return out;
}

// A linear layer of the LayerNorm of tokens.
//   run(layer, tokens, rows, columns): what the kernel gives
template <class scalar_t, int C, class Run>
void check_linear(int64_t rows, int64_t columns, const Run& run) {
  const NormedLinear layer = NormedLinear::random<scalar_t>(C, columns);
  const std::vector<double> x = random_numbers<scalar_t>(rows * C, 1, 2, 0.5);
  const Bits<scalar_t> tokens(x), out = run(layer, tokens, rows, columns);
  Errors errors;
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<double> token(&x[row * C], &x[row * C] + C);
    const std::vector<double> expected = layer(token, Exact());
    const std::vector<double> parts = layer(token, Rounded<scalar_t>());
    for (int64_t c = 0; c < columns; ++c)
      errors.add(out[row * columns + c], parts[c], expected[c]);
  }
  CAPTURE(C);
  CHECK(errors.ratio() < kMaxErrorRatio);
}

template <class Config>
void check_few(int64_t rows, int64_t columns) {
  check_linear<typename Config::scalar_t, Config::C>(
      rows, columns, [](const auto&... args) { return run_linear<Config>(args...); });
}

template <class Config>
void check_staying(int64_t rows, int64_t columns, int block_columns) {
  check_linear<typename Config::scalar_t, Config::C>(rows, columns, [=](const auto&... args) {
    return run_staying<Config>(args..., block_columns);
  });
}

}  // namespace

TEST_CASE("reduce_kv: of all tokens, few and many") {
  check_linear<BFloat16, 512>(70, 1024, [](const auto&... args) {
    return run_linear<Linear<BFloat16, 512, Source::kTokens, 4, 128, 2>>(args..., 640);
  });
  check_linear<BFloat16, 512>(70, 1024, [](const auto&... args) {
    return run_streamed<StreamedLinearConfig<BFloat16, true, Then::kStore, 2, 4, 4, 32, 4>, 512>(
        args..., 512);
  });
}

// q of attention_block_ and the first layer of conv_mlp_block_.
TEST_CASE("linear layers of few tokens") {
  check_few<Linear<BFloat16, 32, Source::kTokens, 4, 32, 3>>(70, 128);
  check_few<Linear<Half, 64, Source::kTokens, 4, 64, 3>>(1, 192);
  check_few<Linear<BFloat16, 128, Source::kTokens, 4, 128, 3>>(17, 64);
  check_few<Linear<Half, 160, Source::kTokens, 4, 160, 2>>(40, 128);
}

// Blocks of two tiles of rows; channels that are not the same number of strips for every warp.
TEST_CASE("linear layers whose warps share inputs") {
  check_few<SplitLinear<BFloat16, 128, Source::kTokens, 4>>(33, 64);
  check_few<SplitLinear<Half, 128, Source::kTokens, 4>>(17, 96);
  check_few<SplitLinear<BFloat16, 160, Source::kTokens, 4>>(70, 32);
  check_few<SplitLinear<Half, 256, Source::kTokens, 8>>(1, 64);
  check_few<SplitLinear<BFloat16, 320, Source::kTokens, 8>>(20, 160);
  check_few<SplitLinear<Half, 512, Source::kTokens, 8>>(50, 1024);
}

TEST_CASE("linear layers of many tokens") {
  check_linear<Half, 96>(300, 384, [](const auto&... args) {
    return run_streamed<StreamedLinearConfig<Half, true, Then::kStore, 2, 4, 8, 32, 4>, 96>(args...,
                                                                                            256);
  });
  check_staying<StayingLinearConfig<BFloat16, 64, Then::kStore, 12, 5>>(200, 512, 448);
  check_staying<StayingLinearConfig<Half, 128, Then::kStore, 12, 5>>(17, 448, 448);
  check_staying<StayingLinearConfig<BFloat16, 256, Then::kStore, 8, 5>>(130, 512, 448);
  check_staying<StayingLinearConfig<Half, 320, Then::kStore, 8, 5>>(40, 448, 192);
  check_staying<StayingLinearConfig<BFloat16, 512, Then::kStore, 8, 3>>(60, 320, 320);
}

}  // namespace pvt::cuda
