// The CUDA kernels of attention_block_, run on the CPU against float64.
#include "cuda/attention_block_impl.h"
#include "cuda/attention_warpgroup_impl.h"
#include "cuda/cuda_test.h"
#include "cuda/host_warpgroup.h"
#include "cuda/linear_test.h"
#include "cuda/sra_attention_impl.h"
#include "cuda/turns.h"

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

template <class scalar_t>
struct AttentionMemory {
  explicit AttentionMemory(const Attention& a)
      : attention(a),
        x(a.x),
        kv(a.kv),
        q(packed<scalar_t>(a.q_weight, a.C, a.C)),
        proj(packed<scalar_t>(a.proj_weight, a.C, a.C)),
        norm_weight(a.norm_weight),
        norm_bias(a.norm_bias),
        q_bias(a.q_bias),
        proj_bias(a.proj_bias) {}

  KeyValues key_values() const {
    const int64_t key_bytes = 2 * attention.C * 2;
    return {kv.bytes(), attention.kv_len * key_bytes, key_bytes, attention.C * 2,
            static_cast<int>(attention.kv_len)};
  }
  float scale() const {
    return static_cast<float>(kLog2E / std::sqrt(attention.C / attention.heads));
  }

  double error_ratio() {
    Errors errors;
    for (int64_t row = 0; row < attention.B * attention.N; ++row) {
      const auto result = [&](const auto& round) {
        return attention.token(row / attention.N, row % attention.N, round);
      };
      const std::vector<double> expected = result(Exact()), parts = result(Rounded<scalar_t>());
      for (int64_t c = 0; c < attention.C; ++c)
        errors.add(x[row * attention.C + c], parts[c], expected[c]);
    }
    return errors.ratio();
  }

  const Attention& attention;
  Bits<scalar_t> x, kv, q, proj;
  Floats norm_weight, norm_bias, q_bias, proj_bias;
};

// What kernels of the whole operator take.
template <class scalar_t>
AttentionBlockArgs block_args(AttentionMemory<scalar_t>& memory) {
  return {memory.x.data(),
          memory.attention.N,
          memory.norm_weight.data(),
          memory.norm_bias.data(),
          1e-6f,
          memory.q.bytes(),
          memory.q_bias.data(),
          memory.key_values(),
          memory.proj.bytes(),
          memory.proj_bias.data(),
          memory.scale(),
          /*blocks_per_image=*/0};
}

//   run(memory): changes its x, and returns the number of bank conflicts
template <class Config, class Run>
void check_operator(int64_t B, int64_t N, int kv_len, double sharpness, const Run& run) {
  using scalar_t = typename Config::scalar_t;
  constexpr int C = Config::C;
  const Attention attention =
      Attention::random<scalar_t>(B, N, C, Config::kHeads, kv_len, sharpness);
  AttentionMemory<scalar_t> memory(attention);
  CHECK(run(memory) == 0);
  CAPTURE(C);
  CAPTURE(kv_len);
  CHECK(memory.error_ratio() < kMaxErrorRatio);
}

template <class Config>
void check_attention(int64_t B, int64_t N, int kv_len, double sharpness = 1) {
  check_operator<Config>(B, N, kv_len, sharpness, [&](auto& memory) {
    AttentionBlockArgs args = block_args(memory);
    args.blocks_per_image = static_cast<int>((N + Config::kRows - 1) / Config::kRows);
    return launch_on_host<Config>("attention_block", B * args.blocks_per_image,
                                  Config::kSharedBytes, 11,
                                  [&](auto& block) { attention_block<Config>(block, args); });
  });
}

template <class Config>
void check_warpgroups(int64_t B, int64_t N, int kv_len, int parts, double sharpness = 1) {
  check_operator<Config>(B, N, kv_len, sharpness, [&](auto& memory) {
    constexpr int C = Config::C;
    AttentionWarpgroupArgs args{block_args(memory), parts};
    Blocks q(memory.q.bytes(), C, C, Follow::kInputs);
    Blocks proj(memory.proj.bytes(), C, C, Follow::kInputs);
    args.attention.q_weight = q.data(), args.attention.proj_weight = proj.data();
    return launch_on_host<Config, HostWarpgroup>(
        "attention_warpgroup", B * parts, Config::kSharedBytes, 17,
        [&](auto& block) { attention_warpgroup<Config>(block, args); });
  });
}

// The three kernels with queries and the heads' results in memory.
template <class Q, class Heads, class Projection>
void check_layers(int64_t B, int64_t N, int kv_len) {
  using scalar_t = typename Q::scalar_t;
  constexpr int C = Q::C, kHeads = C / Heads::kHeadDim;
  const Attention attention = Attention::random<scalar_t>(B, N, C, kHeads, kv_len, 1);
  AttentionMemory<scalar_t> memory(attention);
  const int64_t rows = B * N;
  Bits<scalar_t> queries(std::vector<double>(rows * C, NAN));
  Bits<scalar_t> attended(std::vector<double>(rows * C, NAN));
  LinearArgs q{};
  q.x = memory.x.data(), q.rows = rows;
  q.norm_weight = memory.norm_weight.data(), q.norm_bias = memory.norm_bias.data(), q.eps = 1e-6f;
  q.weight = memory.q.bytes(), q.bias = memory.q_bias.data();
  q.out = queries.data(), q.columns = C;
  run_on_host<Q>(q);

  SraAttentionArgs heads{};
  heads.q = queries.data(), heads.kv = memory.key_values(), heads.out = attended.data();
  heads.N = N, heads.heads = kHeads, heads.scale = memory.scale(), heads.parts = 1;
  const int64_t conflicts =
      launch_on_host<Heads>("sra_attention", B * kHeads, Heads::shared_bytes(heads.kv.blocks()), 13,
                            [&](auto& block) { sra_attention<Heads>(block, heads); });
  CHECK(conflicts == 0);

  StreamedLinearArgs proj{};
  proj.x = attended.data(), proj.rows = rows, proj.depth = C;
  proj.weight = memory.proj.bytes(), proj.bias = memory.proj_bias.data();
  proj.out = memory.x.data(), proj.columns = C;
  run_on_host<Projection>(proj);

  CAPTURE(C);
  CHECK(memory.error_ratio() < kMaxErrorRatio);
}

template <class scalar_t, int C, int kDepth, int kSlots>
using Query = LinearConfig<scalar_t, C, Source::kTokens, Then::kStore, 4, kDepth, kSlots>;
template <class scalar_t>
using Projection = SplitStreamedConfig<scalar_t, Then::kAdd, 2, 8, 4>;
template <class scalar_t, int kDepth>
using NarrowProjection = StreamedLinearConfig<scalar_t, false, Then::kAdd, 1, 1, 4, kDepth, 4>;

}  // namespace

TEST_CASE("attention_block_: heads of 64 channels") {
  check_attention<AttentionBlockConfig<BFloat16, 64, 64, 8, 64, 3>>(2, 150, 49);
  check_attention<AttentionBlockConfig<Half, 128, 64, 4, 128, 3>>(1, 17, 50);
  check_attention<AttentionBlockConfig<BFloat16, 128, 64, 8, 128, 3>>(1, 130, 20);
  check_attention<AttentionBlockConfig<BFloat16, 320, 64, 4, 64, 2>>(1, 16, 100);
  check_attention<AttentionBlockConfig<BFloat16, 512, 64, 4, 128, 2>>(2, 5, 50);
}

TEST_CASE("attention_block_: heads of 32 channels") {
  check_attention<AttentionBlockConfig<BFloat16, 32, 32, 4, 32, 3>>(1, 65, 7);
  check_attention<AttentionBlockConfig<Half, 32, 32, 8, 32, 3>>(2, 100, 49);
  check_attention<AttentionBlockConfig<BFloat16, 64, 32, 4, 64, 3>>(1, 50, 49);
  check_attention<AttentionBlockConfig<Half, 64, 32, 8, 64, 3>>(1, 130, 16);
  check_attention<AttentionBlockConfig<BFloat16, 160, 32, 4, 160, 2>>(3, 15, 100);
  check_attention<AttentionBlockConfig<BFloat16, 256, 32, 4, 128, 2>>(1, 1, 64);
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

TEST_CASE("attention_block_: many tokens, up to 64 keys") {
  check_warpgroups<AttentionWarpgroupConfig<BFloat16, 64, 8, 2>>(2, 300, 49, 2);
  check_warpgroups<AttentionWarpgroupConfig<Half, 128, 8, 4>>(1, 330, 49, 1);
  check_warpgroups<AttentionWarpgroupConfig<BFloat16, 128, 8, 4>>(2, 20, 64, 1);
  check_warpgroups<AttentionWarpgroupConfig<BFloat16, 320, 8, 3>>(2, 196, 49, 2);
  check_warpgroups<AttentionWarpgroupConfig<Half, 320, 8, 3>>(1, 1, 50, 1);
  for (const int kv_len : {1, 2, 17, 31, 32, 33, 48, 63})
    check_warpgroups<AttentionWarpgroupConfig<BFloat16, 64, 8, 2>>(1, 16, kv_len, 1);
  check_warpgroups<AttentionWarpgroupConfig<BFloat16, 64, 8, 2>>(1, 16, 40, 1, /*sharpness=*/8);
}

TEST_CASE("parts that are done first") {
  // Images of 25 tiles, a start as long as three of them, 264 places.
  const auto parts = [](int64_t images) { return parts_done_first(264, images, 25, 25, 3); };
  CHECK(parts(256) == 1);  // one turn
  CHECK(parts(128) == 2);
  CHECK(parts(64) == 4);
  CHECK(parts(133) == 3);   // two turns of 12 tiles, not one of 28
  CHECK(parts(300) == 2);   // three of 16 instead of two of 28
  CHECK(parts(1) == 25);    // never more than there are tiles
  CHECK(parts(1000) == 1);  // a start in every turn is too much
}

TEST_CASE("attention_block_: three kernels, few rows") {
  check_layers<Query<BFloat16, 320, 160, 2>, SraAttentionConfig<BFloat16, 64, 4>,
               NarrowProjection<BFloat16, 160>>(2, 35, 49);
  check_layers<Query<Half, 256, 128, 2>, SraAttentionConfig<Half, 32, 4>,
               NarrowProjection<Half, 128>>(1, 16, 130);
  check_layers<SplitLinear<BFloat16, 320, Source::kTokens, 8>, SraAttentionConfig<BFloat16, 64, 4>,
               Projection<BFloat16>>(1, 35, 49);
  check_layers<SplitLinear<Half, 256, Source::kTokens, 8>, SraAttentionConfig<Half, 32, 4>,
               Projection<Half>>(1, 16, 130);
  check_layers<SplitLinear<BFloat16, 512, Source::kTokens, 8>, SraAttentionConfig<BFloat16, 64, 4>,
               Projection<BFloat16>>(1, 50, 50);
}

}  // namespace pvt::cuda
