// The CUDA kernels of reduce_kv, spatial_reduction and patch_embed, run on the CPU against float64.
#include "cuda/convolve_impl.h"
#include "cuda/convolve_warpgroup_impl.h"
#include "cuda/host_warpgroup.h"
#include "cuda/linear_test.h"
#include "cuda/patch_norm_impl.h"

namespace pvt::cuda {
namespace {

template <class scalar_t>
struct PackedConvolution;

struct Convolution {
  int64_t B, H, W, C, C_out;
  int kernel_size, stride, padding;
  bool normalises;
  std::vector<double> x, norm_weight, norm_bias, weight, bias;

  template <class scalar_t>
  Convolution& fill() {
    x = random_numbers<scalar_t>(B * H * W * C, 1, 2, 0.5);
    norm_weight = random_numbers<scalar_t>(C, 2, 0.1, 1);
    norm_bias = random_numbers<scalar_t>(C, 3, 0.1);
    weight = random_numbers<scalar_t>(C_out * inputs(), 4, 1 / std::sqrt(inputs()));
    bias = random_numbers<scalar_t>(C_out, 5, 0.1);
    return *this;
  }
  int64_t inputs() const { return C * kernel_size * kernel_size; }
  int64_t out_H() const { return (H + 2 * padding - kernel_size) / stride + 1; }
  int64_t out_W() const { return (W + 2 * padding - kernel_size) / stride + 1; }
  int64_t rows() const { return B * out_H() * out_W(); }

  // Channels of a patch; tokens are normalised first if `normalises`.
  template <class Round>
  std::vector<double> patch(int64_t row, const Round& round) const {
    const int64_t image = row / (out_H() * out_W()), in_image = row % (out_H() * out_W());
    std::vector<double> inputs;
    for (int r = 0; r < kernel_size; ++r) {
      for (int s = 0; s < kernel_size; ++s) {
        const int64_t i = in_image / out_W() * stride - padding + r;
        const int64_t j = in_image % out_W() * stride - padding + s;
        std::vector<double> token(C);
        if (0 <= i && i < H && 0 <= j && j < W) {
          const double* from = &x[((image * H + i) * W + j) * C];
          token = normalises ? round(layer_norm(from, C, norm_weight, norm_bias, 1e-6))
                             : std::vector<double>(from, from + C);
        }
        inputs.insert(inputs.end(), token.begin(), token.end());
      }
    }
    return round(linear(inputs, weight, bias));
  }

  // The sums that convolve() leaves, in `splits` parts; none if it finishes the rows at `end`.
  template <class Config>
  std::vector<float> run(int splits, const PatchEnd& end = {}) const {
    using scalar_t = typename Config::scalar_t;
    const int64_t size = end.out != nullptr ? 0 : splits * rows() * C_out;
    Floats sums(std::vector<double>(std::max<int64_t>(size, 1), NAN));
    const PackedConvolution<scalar_t> packed_convolution(*this);
    ConvolveArgs args = packed_convolution.args;
    args.sums = size == 0 ? nullptr : sums.data();
    args.splits = splits, args.end = end;
    const int64_t blocks =
        (rows() + Config::kRows - 1) / Config::kRows * (C_out / Config::kColumns) * splits;
    const int64_t conflicts = launch<Config>(args, blocks);
    CHECK(conflicts == 0);
    return std::vector<float>(sums.data(), sums.data() + size);
  }

 private:
  template <class Config>
  int64_t launch(ConvolveArgs args, int64_t blocks) const {
    if constexpr (requires { Config::kFollow; }) {
      Blocks weight_blocks(args.weight, C_out, inputs(), Config::kFollow);
      args.weight = weight_blocks.data();
      return launch_on_host<Config, HostWarpgroup>(
          "convolve_warpgroup", blocks, Config::kSharedBytes, 11,
          [&](auto& block) { convolve_warpgroup<Config>(block, args); });
    } else {
      return launch_on_host<Config>("convolve", blocks, Config::kSharedBytes, 11,
                                    [&](auto& block) { convolve<Config>(block, args); });
    }
  }
};

// Its tensors in memory, and what kernels take of them.
template <class scalar_t>
struct PackedConvolution {
  explicit PackedConvolution(const Convolution& c)
      : tokens(c.x),
        weight(packed<scalar_t>(c.weight, c.C_out, c.inputs())),
        norm_weight(c.norm_weight),
        norm_bias(c.norm_bias) {
    args.x = tokens.data();
    args.image_bytes = c.H * c.W * c.C * 2, args.row_bytes = c.W * c.C * 2;
    args.column_bytes = c.C * 2;
    args.H = static_cast<int>(c.H), args.W = static_cast<int>(c.W);
    args.kernel_size = c.kernel_size, args.stride = c.stride, args.padding = c.padding;
    args.norm_weight = norm_weight.data(), args.norm_bias = norm_bias.data(), args.eps = 1e-6f;
    args.weight = weight.bytes();
    args.rows = c.rows();
    args.out_H = static_cast<int>(c.out_H()), args.out_W = static_cast<int>(c.out_W());
    args.C_out = static_cast<int>(c.C_out), args.splits = 1;
  }

  Bits<scalar_t> tokens, weight;
  Floats norm_weight, norm_bias;
  ConvolveArgs args{};
};

// Keys and values of 2 C channels from the reduced grid.
//   run(convolution, layer): what kernels give
template <class scalar_t, class Run>
void check_keys(Convolution conv, const Run& run) {
  const int64_t C = conv.C, columns = 2 * C;
  conv.template fill<scalar_t>();
  const NormedLinear layer = NormedLinear::random<scalar_t>(C, columns);
  const Bits<scalar_t> kv = run(conv, layer);
  Errors errors;
  for (int64_t row = 0; row < conv.rows(); ++row) {
    const std::vector<double> expected = layer(conv.patch(row, Exact()), Exact());
    const std::vector<double> parts =
        layer(conv.patch(row, Rounded<scalar_t>()), Rounded<scalar_t>());
    for (int64_t c = 0; c < columns; ++c)
      errors.add(kv[row * columns + c], parts[c], expected[c]);
  }
  CAPTURE(C);
  CHECK(errors.ratio() < kMaxErrorRatio);
}

// By convolve() and linear() or split_linear().
template <class Convolve, class Config>
void check_reduction(const Convolution& convolution, int splits,
                     int block_columns = Config::kColumns) {
  using scalar_t = typename Convolve::scalar_t;
  check_keys<scalar_t>(convolution, [&](const Convolution& conv, const NormedLinear& layer) {
    const std::vector<float> sums = conv.template run<Convolve>(splits);
    const Floats aligned(std::vector<double>(sums.begin(), sums.end()));
    return run_linear<Config>(layer, aligned.data(), conv.rows(), splits, conv.bias, 2 * conv.C,
                              block_columns);
  });
}

// By reduce_warpgroup().
template <class Config>
void check_reduction(const Convolution& convolution) {
  using scalar_t = typename Config::scalar_t;
  check_keys<scalar_t>(convolution, [](const Convolution& conv, const NormedLinear& layer) {
    const int64_t columns = 2 * conv.C;
    const PackedConvolution<scalar_t> packed_convolution(conv);
    const Bits<scalar_t> weight = packed<scalar_t>(layer.weight, columns, conv.C);
    Blocks sr_blocks(packed_convolution.args.weight, conv.C, conv.inputs(), Config::kFollow);
    Blocks kv_blocks(weight.bytes(), columns, conv.C, Follow::kInputs);
    const Floats norm_weight(layer.norm_weight), norm_bias(layer.norm_bias), bias(layer.bias);
    const Floats sums_bias(conv.bias);
    Bits<scalar_t> kv(std::vector<double>(conv.rows() * columns, NAN));
    ReduceArgs args{packed_convolution.args, {}};
    args.convolution.weight = sr_blocks.data();
    args.linear.rows = conv.rows(), args.linear.sums_bias = sums_bias.data();
    args.linear.norm_weight = norm_weight.data(), args.linear.norm_bias = norm_bias.data();
    args.linear.eps = 1e-5f;
    args.linear.weight = kv_blocks.data(), args.linear.bias = bias.data();
    args.linear.out = kv.data(), args.linear.columns = static_cast<int>(columns);
    const int64_t blocks = (conv.rows() + Config::kRows - 1) / Config::kRows;
    const int64_t conflicts = launch_on_host<Config, HostWarpgroup>(
        "reduce_warpgroup", blocks, Config::kSharedBytes, 16,
        [&](auto& block) { reduce_warpgroup<Config>(block, args); });
    CHECK(conflicts == 0);
    return kv;
  });
}

// The rows of patch_embed and spatial_reduction. fused: of convolve() alone
template <class Convolve>
void check_patches(Convolution conv, int splits, bool positions, bool fused = false) {
  using scalar_t = typename Convolve::scalar_t;
  const int64_t C = conv.C_out, image_rows = conv.out_H() * conv.out_W();
  conv.template fill<scalar_t>();
  const NormedLinear norm = NormedLinear::random<scalar_t>(C, 0);
  const std::vector<double> table = random_numbers<scalar_t>(image_rows * C, 10);
  const Floats bias(conv.bias), norm_weight(norm.norm_weight), norm_bias(norm.norm_bias);
  const Floats position(table);
  Bits<scalar_t> out(std::vector<double>(conv.rows() * C, NAN));
  const PatchEnd end{bias.data(),
                     norm_weight.data(),
                     norm_bias.data(),
                     1e-5f,
                     positions ? position.data() : nullptr,
                     image_rows,
                     out.data()};
  if (fused) {
    conv.template run<Convolve>(splits, end);
  } else {
    const std::vector<float> sums = conv.template run<Convolve>(splits);
    const Floats aligned(std::vector<double>(sums.begin(), sums.end()));
    const PatchNormArgs args{aligned.data(), conv.rows(), splits, static_cast<int>(C), end};
    launch_on_host<8>((conv.rows() + 7) / 8, 0, 13,
                      [&](auto& block) { patch_norm<scalar_t>(block, args); });
  }
  const auto finish = [&](int64_t row, const auto& round) {
    const std::vector<double> patch = conv.patch(row, round);
    std::vector<double> token =
        round(layer_norm(patch.data(), C, norm.norm_weight, norm.norm_bias, 1e-5));
    for (int64_t c = 0; c < C && positions; ++c)
      token[c] += table[row % image_rows * C + c];
    return round(token);
  };
  Errors errors;
  for (int64_t row = 0; row < conv.rows(); ++row) {
    const std::vector<double> expected = finish(row, Exact());
    const std::vector<double> parts = finish(row, Rounded<scalar_t>());
    for (int64_t c = 0; c < C; ++c)
      errors.add(out[row * C + c], parts[c], expected[c]);
  }
  CAPTURE(C);
  CHECK(errors.ratio() < kMaxErrorRatio);
}

// Of the LayerNorm of tokens, or of tokens as they are.
Convolution reduction(int64_t B, int64_t H, int64_t W, int64_t C, int sr_ratio,
                      bool normalises = true) {
  return {B, H, W, C, C, sr_ratio, sr_ratio, 0, normalises, {}, {}, {}, {}, {}};
}

Convolution embedding(int64_t B, int64_t H, int64_t W, int64_t C, int64_t C_out, bool overlaps) {
  const int kernel_size = overlaps ? 3 : 2, padding = overlaps ? 1 : 0;
  return {B, H, W, C, C_out, kernel_size, 2, padding, false, {}, {}, {}, {}, {}};
}

}  // namespace

TEST_CASE("reduce_kv: on a smaller grid") {
  check_reduction<ConvolveConfig<BFloat16, 64, true, 1, 2, 4, 64, 3>,
                  Linear<BFloat16, 64, Source::kSums, 4, 64, 3>>(reduction(2, 24, 17, 64, 8), 7,
                                                                 128);
  check_reduction<ConvolveConfig<Half, 128, true, 1, 4, 4, 64, 3>,
                  Linear<Half, 128, Source::kSums, 4, 128, 3>>(reduction(1, 13, 22, 128, 4), 3, 64);
  check_reduction<ConvolveConfig<BFloat16, 320, true, 1, 5, 4, 64, 3>,
                  Linear<BFloat16, 320, Source::kSums, 4, 160, 2>>(reduction(1, 5, 7, 320, 2), 1,
                                                                   192);
  check_reduction<ConvolveConfig<BFloat16, 32, true, 1, 1, 4, 32, 4>,
                  Linear<BFloat16, 32, Source::kSums, 4, 32, 3>>(reduction(3, 10, 19, 32, 2), 4,
                                                                 64);
  check_reduction<ConvolveConfig<Half, 160, true, 1, 5, 4, 32, 4>,
                  Linear<Half, 160, Source::kSums, 4, 160, 2>>(reduction(1, 9, 8, 160, 4), 1, 128);
}

TEST_CASE("reduce_kv: few patches") {
  check_reduction<ConvolveConfig<BFloat16, 64, true, 1, 1, 4, 64, 4>,
                  Linear<BFloat16, 64, Source::kSums, 4, 64, 3>>(reduction(1, 24, 17, 64, 8), 16);
  check_reduction<ConvolveConfig<Half, 128, true, 1, 1, 4, 128, 4>,
                  SplitLinear<Half, 128, Source::kSums, 4>>(reduction(1, 9, 13, 128, 4), 7);
  check_reduction<ConvolveConfig<BFloat16, 320, true, 1, 1, 4, 64, 4>,
                  SplitLinear<BFloat16, 320, Source::kSums, 8>>(reduction(1, 15, 14, 320, 2), 4);
  check_reduction<ConvolveConfig<Half, 160, true, 1, 1, 4, 32, 4>,
                  SplitLinear<Half, 160, Source::kSums, 4>>(reduction(1, 6, 8, 160, 2), 1);
}

TEST_CASE("reduce_kv: many patches") {
  check_reduction<WarpgroupConvolveConfig<BFloat16, 64, true, 1, 8, 6>>(
      reduction(2, 64, 49, 64, 8));
  check_reduction<WarpgroupConvolveConfig<Half, 128, true, 2, 8, 4>>(reduction(1, 37, 49, 128, 4));
  check_reduction<WarpgroupConvolveConfig<BFloat16, 320, true, 5, 8, 4>>(
      reduction(1, 23, 25, 320, 2));
  check_reduction<WarpgroupConvolveConfig<Half, 320, true, 5, 8, 4>>(reduction(1, 9, 6, 320, 3));
}

TEST_CASE("spatial_reduction") {
  check_patches<ConvolveConfig<BFloat16, 64, false, 2, 2, 4, 32, 4>>(
      reduction(2, 24, 17, 64, 8, false), 8, false);
  check_patches<ConvolveConfig<Half, 160, false, 1, 5, 4, 32, 4>>(reduction(1, 5, 7, 160, 2, false),
                                                                  1, false, /*fused=*/true);
  check_patches<ConvolveConfig<BFloat16, 32, false, 2, 1, 4, 32, 4>>(
      reduction(1, 24, 8, 32, 8, false), 1, false, /*fused=*/true);
  check_patches<ConvolveConfig<Half, 128, false, 2, 4, 4, 32, 4>>(
      reduction(1, 13, 9, 128, 4, false), 1, false, /*fused=*/true);
  check_patches<ConvolveConfig<BFloat16, 320, false, 1, 5, 4, 32, 4>>(
      reduction(1, 4, 6, 320, 2, false), 3, false);
}

TEST_CASE("spatial_reduction: many patches") {
  check_patches<WarpgroupConvolveConfig<BFloat16, 64, false, 1, 8, 6>>(
      reduction(1, 24, 40, 64, 8, false), 1, false, /*fused=*/true);
  check_patches<WarpgroupConvolveConfig<Half, 128, false, 2, 8, 4>>(
      reduction(2, 13, 9, 128, 4, false), 1, false, /*fused=*/true);
  check_patches<WarpgroupConvolveConfig<BFloat16, 320, false, 5, 8, 4>>(
      reduction(1, 4, 6, 320, 2, false), 1, false, /*fused=*/true);
}

TEST_CASE("patch_embed: of tokens") {
  using Wide = ConvolveConfig<BFloat16, 64, false, 2, 4, 4, 32, 4>;
  check_patches<Wide>(embedding(2, 9, 7, 64, 128, false), 2, true);
  check_patches<Wide>(embedding(2, 19, 17, 64, 128, false), 1, true, /*fused=*/true);
  check_patches<Wide>(embedding(1, 7, 10, 64, 128, true), 1, false, /*fused=*/true);
  check_patches<ConvolveConfig<BFloat16, 320, false, 1, 4, 4, 32, 4>>(
      embedding(1, 4, 5, 320, 512, false), 1, true);
  check_patches<ConvolveConfig<Half, 64, false, 1, 1, 4, 64, 4>>(embedding(2, 7, 10, 64, 128, true),
                                                                 4, false);
  check_patches<ConvolveConfig<BFloat16, 32, false, 2, 2, 4, 32, 4>>(
      embedding(1, 1, 1, 32, 64, true), 9, false);
  check_patches<ConvolveConfig<BFloat16, 64, false, 1, 5, 4, 32, 4>>(
      embedding(1, 9, 11, 64, 160, true), 1, false, /*fused=*/true);
  check_patches<ConvolveConfig<Half, 128, false, 1, 5, 4, 32, 4>>(
      embedding(1, 6, 8, 128, 320, false), 1, true);
  check_patches<ConvolveConfig<BFloat16, 160, false, 2, 4, 4, 32, 4>>(
      embedding(1, 5, 6, 160, 256, true), 3, false);
}

TEST_CASE("patch_embed: of many tokens") {
  check_patches<WarpgroupConvolveConfig<BFloat16, 64, false, 2, 8, 4>>(
      embedding(2, 19, 17, 64, 128, true), 1, false, /*fused=*/true);
  check_patches<WarpgroupConvolveConfig<Half, 128, false, 5, 8, 4>>(
      embedding(1, 6, 8, 128, 320, false), 1, true, /*fused=*/true);
  check_patches<WarpgroupConvolveConfig<BFloat16, 320, false, 4, 8, 4>>(
      embedding(1, 5, 4, 320, 512, true), 1, true);
}

TEST_CASE("patch_embed: of few tokens") {
  check_patches<ConvolveConfig<BFloat16, 32, false, 1, 1, 4, 32, 4>>(
      embedding(1, 5, 4, 32, 64, true), 9, false);
  check_patches<ConvolveConfig<Half, 128, false, 1, 1, 4, 128, 4>>(
      embedding(1, 4, 6, 128, 320, false), 4, true);
  check_patches<ConvolveConfig<BFloat16, 160, false, 1, 1, 4, 32, 4>>(
      embedding(1, 3, 3, 160, 256, true), 5, false);
  check_patches<ConvolveConfig<Half, 320, false, 1, 1, 4, 64, 4>>(
      embedding(1, 4, 5, 320, 512, false), 2, true);
}

// The 1 x 1 convolution of pool_kv.
TEST_CASE("pool_kv: the product of cells") {
  check_patches<ConvolveConfig<BFloat16, 512, false, 1, 2, 4, 32, 4>>(
      reduction(1, 7, 7, 512, 1, false), 1, false);
  check_patches<ConvolveConfig<Half, 512, false, 1, 1, 4, 64, 4>>(reduction(1, 3, 4, 512, 1, false),
                                                                  1, false);
}

}  // namespace pvt::cuda
