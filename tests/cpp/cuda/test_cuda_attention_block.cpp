// The CUDA kernels of attention_block_, run on the CPU against float64.
#include "cuda/attention_block_impl.h"
#include "cuda/cuda_test.h"

namespace pvt::cuda {
namespace {

constexpr double kLog2E = 1.4426950408889634;

struct Attention {
  int64_t B, N, C, heads, kv_len;
  std::vector<double> x, kv, norm_weight, norm_bias, q_weight, q_bias, proj_weight, proj_bias;

  // `sharpness`: of the distribution over keys.
  template <class scalar_t>
  static Attention random(int64_t B, int64_t N, int64_t C, int64_t heads, int64_t kv_len,
                          double sharpness) {
    Attention a{B, N, C, heads, kv_len, {}, {}, {}, {}, {}, {}, {}, {}};
    a.x = random_numbers<scalar_t>(B * N * C, 1, 2, 0.5);
    a.kv = random_numbers<scalar_t>(B * kv_len * 2 * C, 2);
    a.norm_weight = random_numbers<scalar_t>(C, 3, 0.1, 1);
    a.norm_bias = random_numbers<scalar_t>(C, 4, 0.1);
    a.q_weight = random_numbers<scalar_t>(C * C, 5, sharpness / std::sqrt(C));
    a.q_bias = random_numbers<scalar_t>(C, 6, 0.3);
    a.proj_weight = random_numbers<scalar_t>(C * C, 7, 2 / std::sqrt(C));
    a.proj_bias = random_numbers<scalar_t>(C, 8, 0.1);
    return a;
  }

  // The token's result.
  template <class Round>
  std::vector<double> token(int64_t image, int64_t token, const Round& round) const {
    const int64_t D = C / heads;
    const double* tokens = &x[(image * N + token) * C];
    const std::vector<double> q =
        round(linear(round(layer_norm(tokens, C, norm_weight, norm_bias, 1e-6)), q_weight, q_bias));
    std::vector<double> attended;
    for (int64_t head = 0; head < heads; ++head) {
      const double* keys = &kv[image * kv_len * 2 * C + head * D];
      const HeadKeys head_keys{keys, keys + C, 2 * C, kv_len, D};
      const std::vector<double> part = attend_to(head_keys, &q[head * D], 1 / std::sqrt(D), round);
      attended.insert(attended.end(), part.begin(), part.end());
    }
    std::vector<double> result = round(linear(round(attended), proj_weight, proj_bias));
    for (int64_t c = 0; c < C; ++c)
      result[c] += tokens[c];
    return round(result);
  }
};

template <class Config>
void check_attention(int64_t B, int64_t N, int kv_len, double sharpness = 1) {
  using scalar_t = typename Config::scalar_t;
  constexpr int C = Config::C;
  const Attention attention =
      Attention::random<scalar_t>(B, N, C, Config::kHeads, kv_len, sharpness);
  Bits<scalar_t> x(attention.x);
  const Bits<scalar_t> kv(attention.kv);
  const Bits<scalar_t> q = packed<scalar_t>(attention.q_weight, C, C);
  const Bits<scalar_t> proj = packed<scalar_t>(attention.proj_weight, C, C);
  const Floats norm_weight(attention.norm_weight), norm_bias(attention.norm_bias);
  const Floats q_bias(attention.q_bias), proj_bias(attention.proj_bias);
  const int64_t key_bytes = 2 * C * 2;
  const int64_t blocks = (N + Config::kRows - 1) / Config::kRows;
  const AttentionBlockArgs args{x.data(),
                                N,
                                norm_weight.data(),
                                norm_bias.data(),
                                1e-6f,
                                q.bytes(),
                                q_bias.data(),
                                {kv.bytes(), kv_len * key_bytes, key_bytes, C * 2, kv_len},
                                proj.bytes(),
                                proj_bias.data(),
                                static_cast<float>(kLog2E / std::sqrt(Config::kHeadDim)),
                                static_cast<int>(blocks)};
  const int64_t conflicts =
      launch_on_host<Config::kWarps>(B * blocks, Config::kSharedBytes, 11,
                                     [&](auto& block) { attention_block<Config>(block, args); });
  CHECK(conflicts == 0);
  Errors errors;
  for (int64_t row = 0; row < B * N; ++row) {
    const std::vector<double> expected = attention.token(row / N, row % N, Exact());
    const std::vector<double> parts = attention.token(row / N, row % N, Rounded<scalar_t>());
    for (int64_t c = 0; c < C; ++c)
      errors.add(x[row * C + c], parts[c], expected[c]);
  }
  CAPTURE(C);
  CAPTURE(kv_len);
  CHECK(errors.ratio() < kMaxErrorRatio);
}

}  // namespace

TEST_CASE("attention_block_: heads of 64 channels") {
  check_attention<AttentionBlockConfig<BFloat16, 64, 64, 4, 64, 3>>(2, 70, 49);
  check_attention<AttentionBlockConfig<Half, 128, 64, 4, 128, 3>>(1, 17, 50);
  check_attention<AttentionBlockConfig<BFloat16, 320, 64, 4, 160, 2>>(1, 16, 49);
  check_attention<AttentionBlockConfig<BFloat16, 512, 64, 4, 128, 3>>(2, 5, 50);
}

TEST_CASE("attention_block_: heads of 32 channels") {
  check_attention<AttentionBlockConfig<BFloat16, 32, 32, 4, 32, 3>>(1, 65, 7);
  check_attention<AttentionBlockConfig<Half, 64, 32, 8, 64, 3>>(1, 130, 16);
  check_attention<AttentionBlockConfig<BFloat16, 160, 32, 4, 160, 3>>(3, 15, 100);
  check_attention<AttentionBlockConfig<BFloat16, 256, 32, 4, 128, 3>>(1, 1, 64);
}

TEST_CASE("attention_block_: every number of keys") {
  using Config = AttentionBlockConfig<BFloat16, 32, 32, 4, 32, 3>;
  for (int kv_len = 1; kv_len <= 70; ++kv_len)
    check_attention<Config>(1, 16, kv_len);
  for (const int kv_len : {127, 128, 129, 250, 256, 1000})
    check_attention<Config>(1, 16, kv_len);
}

TEST_CASE("attention_block_: one key takes nearly all") {
  check_attention<AttentionBlockConfig<BFloat16, 64, 64, 4, 64, 3>>(1, 16, 200, 8);
}

}  // namespace pvt::cuda
