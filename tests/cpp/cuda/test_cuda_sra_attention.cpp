// The CUDA kernel of sra_attention, run on the CPU against float64.
#include "cuda/cuda_test.h"
#include "cuda/sra_attention_impl.h"

namespace pvt::cuda {
namespace {

constexpr double kLog2E = 1.4426950408889634;

struct Shape {
  int64_t B, N;
  int heads, kv_len;
  int parts = 1;
  // Of the scores: one key takes nearly all if it is large.
  double sharpness = 1;
};

template <class Config>
void check_sra_attention(const Shape& shape) {
  using scalar_t = typename Config::scalar_t;
  constexpr int D = Config::kHeadDim;
  const auto [B, N, heads, kv_len, parts, sharpness] = shape;
  const int64_t C = int64_t{heads} * D, key_bytes = 2 * C * 2;
  const double scale = sharpness / std::sqrt(D);
  const std::vector<double> q = random_numbers<scalar_t>(B * N * C, 1);
  const std::vector<double> kv = random_numbers<scalar_t>(B * kv_len * 2 * C, 2);
  const Bits<scalar_t> q_bits(q), kv_bits(kv);
  Bits<scalar_t> out(std::vector<double>(B * N * C, NAN));
  const SraAttentionArgs args{
      q_bits.bytes(), {kv_bits.bytes(), kv_len * key_bytes, key_bytes, C * 2, kv_len},
      out.data(),     N,
      heads,          static_cast<float>(scale * kLog2E),
      parts};
  const int64_t conflicts = launch_on_host<Config>(
      "sra_attention", B * heads * parts, Config::shared_bytes(args.kv.blocks()), 11,
      [&](auto& block) { sra_attention<Config>(block, args); });
  CHECK(conflicts == 0);
  Errors errors;
  for (int64_t row = 0; row < B * N; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      const double* query = &q[row * C + head * D];
      const double* keys = &kv[row / N * kv_len * 2 * C + head * D];
      const HeadKeys head_keys{keys, keys + C, 2 * C, kv_len, D};
      const Rounded<scalar_t> round;
      const std::vector<double> expected = attend_to(head_keys, query, scale, Exact());
      const std::vector<double> rounded = round(attend_to(head_keys, query, scale, round));
      for (int64_t d = 0; d < D; ++d)
        errors.add(out[row * C + head * D + d], rounded[d], expected[d]);
    }
  }
  CAPTURE(N);
  CAPTURE(kv_len);
  CHECK(errors.ratio() < kMaxErrorRatio);
}

}  // namespace

TEST_CASE("sra_attention: heads of 64 and of 32 channels, in parts") {
  check_sra_attention<SraAttentionConfig<BFloat16, 64, 4>>({2, 150, 1, 49, 2});
  check_sra_attention<SraAttentionConfig<Half, 64, 4>>({1, 33, 5, 50, 1});
  check_sra_attention<SraAttentionConfig<BFloat16, 32, 4>>({3, 49, 2, 49, 1});
  check_sra_attention<SraAttentionConfig<Half, 32, 8>>({1, 300, 1, 256, 3});
}

TEST_CASE("sra_attention: every number of keys and of tokens at the edge of a tile") {
  for (int kv_len = 1; kv_len <= 70; ++kv_len)
    check_sra_attention<SraAttentionConfig<BFloat16, 32, 4>>({1, 16, 1, kv_len});
  for (const int kv_len : {127, 128, 129, 250, 256})
    check_sra_attention<SraAttentionConfig<BFloat16, 64, 4>>({1, 17, 1, kv_len});
  for (const int64_t N : {1, 15, 63, 64, 65, 79, 129})
    check_sra_attention<SraAttentionConfig<BFloat16, 32, 4>>({1, N, 2, 9});
}

TEST_CASE("sra_attention: one key takes nearly all") {
  check_sra_attention<SraAttentionConfig<BFloat16, 64, 4>>({1, 16, 1, 200, 1, 20});
}

TEST_CASE("sra_attention: scores too large for a rounded product of score and scale") {
  check_sra_attention<SraAttentionConfig<BFloat16, 64, 4>>({1, 16, 1, 200, 1, 1e12});
  check_sra_attention<SraAttentionConfig<Half, 32, 4>>({1, 16, 1, 49, 1, 1e12});
}

}  // namespace pvt::cuda
