// The CUDA kernel between the linear layers of conv_mlp_block_, run on the CPU against float64.
#include "cuda/cuda_test.h"
#include "cuda/depthwise_impl.h"

namespace pvt::cuda {
namespace {

template <class scalar_t, bool kRelu>
void check_depthwise(int B, int H, int W, int C) {
  constexpr int kWarps = 4;
  const std::vector<double> x = random_numbers<scalar_t>(int64_t{B} * H * W * C, 1, 2, 0.5);
  const std::vector<double> weight = random_numbers<scalar_t>(9 * C, 2, 0.5);
  const std::vector<double> bias = random_numbers<scalar_t>(C, 3, 0.5);
  Bits<scalar_t> tokens(x), out(std::vector<double>(x.size(), NAN));
  const Floats weight_floats(weight), bias_floats(bias);
  const DepthwiseArgs args{tokens.data(),      B,         H, W, C, weight_floats.data(),
                           bias_floats.data(), out.data()};
  const int64_t lanes = depthwise_lanes(B, H, W, C), threads = kWarps * kLanes;
  launch_on_host<kWarps>((lanes + threads - 1) / threads, 0, 14,
                         [&](auto& block) { depthwise_gelu<scalar_t, kRelu>(block, args); });

  Errors errors;
  for (int b = 0; b < B; ++b) {
    for (int i = 0; i < H; ++i) {
      for (int j = 0; j < W; ++j) {
        std::vector<double> sums = bias;
        for (int r = std::max(0, i - 1); r <= std::min(H - 1, i + 1); ++r) {
          for (int s = std::max(0, j - 1); s <= std::min(W - 1, j + 1); ++s) {
            for (int c = 0; c < C; ++c) {
              const double value = x[((int64_t{b} * H + r) * W + s) * C + c];
              sums[c] += (kRelu ? std::max(value, 0.0) : value) *
                         weight[(3 * (r - i + 1) + s - j + 1) * C + c];
            }
          }
        }
        const auto active = [&](const auto& round) {
          std::vector<double> values = round(sums);
          for (double& value : values)
            value = exact_gelu(value);
          return round(values);
        };
        const std::vector<double> expected = active(Exact()), parts = active(Rounded<scalar_t>());
        for (int c = 0; c < C; ++c)
          errors.add(out[((int64_t{b} * H + i) * W + j) * C + c], parts[c], expected[c]);
      }
    }
  }
  CAPTURE(H);
  CAPTURE(W);
  CHECK(errors.ratio() < kMaxErrorRatio);
}

}  // namespace

TEST_CASE("depthwise: grids around a run of tokens") {
  check_depthwise<BFloat16, false>(2, 7, 9, 128);
  check_depthwise<Half, true>(1, 5, 8, 256);
  check_depthwise<BFloat16, true>(3, 1, 1, 128);
  check_depthwise<Half, false>(1, 2, 3, 640);
  check_depthwise<BFloat16, false>(2, 1, 13, 8);
  check_depthwise<BFloat16, false>(1, 11, 1, 8);
}

}  // namespace pvt::cuda
