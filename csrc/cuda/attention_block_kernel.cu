// attention_block_ on CUDA: which tokens have a kernel, in which shape it runs, its launch.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "aten/kernels.h"
#include "cuda/attention.h"
#include "cuda/attention_block_impl.h"
#include "cuda/attention_warpgroup_impl.h"
#include "cuda/linear_warpgroup.h"
#include "cuda/sra_attention.h"
#include "cuda/turns.h"

namespace pvt::cuda {
namespace {

// Blocks of a multiprocessor, so that they hide each other's waiting: registers for 16 warps, as
// far as there is shared memory for them.
template <class Config>
constexpr int kBlocks = Config::C <= 256   ? 16 / Config::kWarps
                        : Config::C <= 320 ? 3
                                           : 2;

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, kBlocks<Config>)
    attention_block_kernel(AttentionBlockArgs args) {
  if (blockIdx.x == 0) {  // for all blocks
    constexpr int kBytes = 2 * Config::C * Config::C;
    prefetch_weights(args.q_weight, kBytes);
    prefetch_weights(args.proj_weight, kBytes);
  }
  DeviceBlock<Config::kWarps> block;
  attention_block<Config>(block, args);
}

// ---- one kernel ----

template <class Config>
void run_block(const Device& device, int64_t B, AttentionBlockArgs args) {
  args.blocks_per_image = static_cast<int>((args.N + Config::kRows - 1) / Config::kRows);
  launch<attention_block_kernel<Config>>(device, B * args.blocks_per_image, Config::kWarps * kLanes,
                                         Config::kSharedBytes, args);
}

// More warps share more of the weights' way from memory; fewer give more blocks.
template <class scalar_t, int C, int kHeadDim>
void run_few_channels(const Device& device, int64_t B, const AttentionBlockArgs& args) {
  using Wide =
      AttentionBlockConfig<scalar_t, C, kHeadDim, /*kWarps=*/8, /*kDepth=*/C, /*kSlots=*/3>;
  using Narrow =
      AttentionBlockConfig<scalar_t, C, kHeadDim, /*kWarps=*/4, /*kDepth=*/C, /*kSlots=*/3>;
  const bool many = B * args.N >= 2 * int64_t{Wide::kRows} * device.multiprocessors();
  return many ? run_block<Wide>(device, B, args) : run_block<Narrow>(device, B, args);
}

// What is in shared memory, heads and slots, is less than 99 KB, which every device has.
template <class scalar_t, int C, int kHeadDim>
using ManyChannels = AttentionBlockConfig<scalar_t, C, kHeadDim, /*kWarps=*/4,
                                          /*kDepth=*/C == 160 ? 160
                                          : C == 320          ? 64
                                                              : 128,
                                          /*kSlots=*/2>;

// ---- one kernel of warpgroups: heads of 64, up to 64 keys ----

template <class Config>
constexpr int kWarpgroupBlocks = Config::kStaying ? 2 : 1;  // of a multiprocessor

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, kWarpgroupBlocks<Config>)
    attention_warpgroup_kernel(AttentionWarpgroupArgs args) {
  with_warpgroups<Config::kWarps>([&](auto& block) { attention_warpgroup<Config>(block, args); });
}

// All weights of up to 128 channels fit into shared memory twice, with keys and values of an image.
template <class scalar_t, int C>
using Warpgroups = AttentionWarpgroupConfig<scalar_t, C, /*kWarps=*/8,
                                            /*kSlots=*/C <= 128 ? C / 32 : 3>;

template <class scalar_t, int C>
void run_warpgroups(const Device& device, int64_t B, const Tensor& x, AttentionBlockArgs args) {
  using Config = Warpgroups<scalar_t, C>;
  const WeightBlocks<2> blocks(
      device, x,
      {{args.q_weight, C, C, Follow::kInputs}, {args.proj_weight, C, C, Follow::kInputs}});
  args.q_weight = blocks.data(0), args.proj_weight = blocks.data(1);
  const int64_t tiles = (args.N + Config::kRows - 1) / Config::kRows;
  // Where weights stay, a block brings them, keys and values: about as long as three of its tiles.
  constexpr int kStart = 3;
  const int64_t places = int64_t{kWarpgroupBlocks<Config>} * device.multiprocessors();
  const int parts = Config::kStaying ? parts_done_first(places, B, tiles, tiles, kStart)
                                     : static_cast<int>(tiles);
  launch<attention_warpgroup_kernel<Config>>(device, B * parts, Config::kWarps * kLanes,
                                             Config::kSharedBytes,
                                             AttentionWarpgroupArgs{args, parts});
}

// ---- three kernels, with queries and the heads' results between them in memory ----

template <class scalar_t, int C>
bool are_for_warpgroups(const Device& device, int64_t rows) {
  return has_rows_for_warpgroups<scalar_t, C>(device, rows, 0.5);
}

template <class scalar_t, int C, int kHeadDim>
void run_layers(const Device& device, int64_t B, const Tensor& x, const AttentionBlockArgs& args) {
  const int64_t rows = B * args.N;
  Tensor queries = torch::stable::new_empty(x, {rows, C});
  Tensor attended = torch::stable::new_empty(x, {rows, C});

  const bool many = are_for_warpgroups<scalar_t, C>(device, rows);
  std::optional<WeightBlocks<2>> blocks;
  if (many) {
    const PackedWeight weights[] = {{args.q_weight, C, C, kStayingFollow},
                                    {args.proj_weight, C, C, kPassingFollow}};
    blocks.emplace(device, x, weights);
  }
  LinearArgs q{};
  q.x = args.x, q.rows = rows;
  q.norm_weight = args.norm_weight, q.norm_bias = args.norm_bias, q.eps = args.eps;
  q.weight = args.q_weight, q.bias = args.q_bias;
  q.out = queries.mutable_data_ptr(), q.columns = C;
  if (many) {
    q.weight = blocks->data(0);
    launch_staying_linear<scalar_t, C, Then::kStore>(device, streamed<C>(q));
  } else {
    run_linear<scalar_t, C, Source::kTokens, Then::kStore>(device, q);
  }

  SraAttentionArgs attention{};
  attention.q = queries.const_data_ptr(), attention.kv = args.kv,
  attention.out = attended.mutable_data_ptr();
  attention.N = args.N, attention.heads = C / kHeadDim, attention.scale = args.scale;
  run_sra_attention<scalar_t, kHeadDim>(device, B, attention);

  StreamedLinearArgs proj{};
  proj.x = attention.out, proj.rows = rows, proj.depth = C;
  proj.weight = args.proj_weight, proj.bias = args.proj_bias;
  proj.out = args.x, proj.columns = C;
  if (many) {
    proj.weight = blocks->data(1);
    launch_passing_linear<scalar_t, C, Then::kAdd>(device, proj);
  } else {
    run_narrow_linear<scalar_t, C == 320 ? 160 : 128>(device, proj);
  }
}

// ---- which of them ----
//
// One kernel moves nothing but tokens; but a block of it goes through all heads and both weights,
// one after the other: on an H200 a single block takes 52 us at 320 channels and 113 at 512, and
// up to 264 of them at once take as long. Three kernels share heads and columns out as well.
bool fills(const Device& device, int64_t blocks) {
  return blocks >= 4 * int64_t{device.multiprocessors()};
}

// One kernel of warpgroups, where there are as many tokens as its blocks take at once.
template <int C, int kHeadDim>
constexpr bool kHasWarpgroups = kHeadDim == kBlock && C <= 320;

template <class scalar_t, int C>
bool are_for_one_kernel(const Device& device, int64_t B, const AttentionBlockArgs& args) {
  using Config = Warpgroups<scalar_t, C>;
  const int64_t blocks = B * ((args.N + Config::kRows - 1) / Config::kRows);
  return args.kv.kv_len <= kBlock && has_warpgroups(device) &&
         blocks >= kWarpgroupBlocks<Config> * int64_t{device.multiprocessors()};
}

template <class scalar_t, int C, int kHeadDim>
void run(const Device& device, int64_t B, const Tensor& x, const AttentionBlockArgs& args) {
  if constexpr (kHasWarpgroups<C, kHeadDim>) {
    if (are_for_one_kernel<scalar_t, C>(device, B, args)) {
      return run_warpgroups<scalar_t, C>(device, B, x, args);
    }
  }
  if constexpr (C <= 128) {
    return run_few_channels<scalar_t, C, kHeadDim>(device, B, args);
  } else {
    using Config = ManyChannels<scalar_t, C, kHeadDim>;
    static_assert(Config::kSharedBytes <= 99 * 1024, "what every device has");
    if constexpr (C % 64 == 0) {  // columns of a LinearConfig
      const int64_t blocks = B * ((args.N + Config::kRows - 1) / Config::kRows);
      const bool layers =
          !fills(device, blocks) || are_for_warpgroups<scalar_t, C>(device, B * args.N);
      if (layers && args.kv.kv_len <= kMaxStayingKeys && is_usual_scale(args.scale)) {
        return run_layers<scalar_t, C, kHeadDim>(device, B, x, args);
      }
    }
    return run_block<Config>(device, B, args);
  }
}

// Runs a kernel if there is one for so many channels and heads.
template <class scalar_t>
bool dispatch_heads(const Device& device, const SraShape& s, const Tensor& x,
                    const AttentionBlockArgs& args) {
  switch (s.C * 1000 + s.head_dim) {
    case 32032:
      return run<scalar_t, 32, 32>(device, s.B, x, args), true;
    case 64032:
      return run<scalar_t, 64, 32>(device, s.B, x, args), true;
    case 160032:
      return run<scalar_t, 160, 32>(device, s.B, x, args), true;
    case 256032:
      return run<scalar_t, 256, 32>(device, s.B, x, args), true;
    case 64064:
      return run<scalar_t, 64, 64>(device, s.B, x, args), true;
    case 128064:
      return run<scalar_t, 128, 64>(device, s.B, x, args), true;
    case 320064:
      return run<scalar_t, 320, 64>(device, s.B, x, args), true;
    case 512064:
      return run<scalar_t, 512, 64>(device, s.B, x, args), true;
    default:
      return false;
  }
}

}  // namespace

void attention_block_cuda(Tensor& x, const Tensor& kv, const Tensor& norm_weight,
                          const Tensor& norm_bias, double eps, const Tensor& q_weight,
                          const Tensor& q_bias, const Tensor& proj_weight, const Tensor& proj_bias,
                          int64_t num_heads, double scale) {
  const SraShape s = check_attention_block(x, kv, norm_weight, norm_bias, q_weight, q_bias,
                                           proj_weight, proj_bias, num_heads);
  if (s.B == 0 || s.N == 0) {
    return;
  }
  const Device device("attention_block_", x);
  bool done = false;
  if (have_packed_kernel(device, x, {q_weight, proj_weight}) && is_aligned(x) && s.N <= INT32_MAX &&
      s.kv_len <= INT32_MAX) {
    const Vector norm_w(norm_weight), norm_b(norm_bias), q_b(q_bias), proj_b(proj_bias);
    const Weight q(q_weight), proj(proj_weight);
    const Tensor keys = vector_rows(kv);
    const AttentionBlockArgs args{x.mutable_data_ptr(),
                                  s.N,
                                  norm_w.data(),
                                  norm_b.data(),
                                  static_cast<float>(eps),
                                  q.data(),
                                  q_b.data(),
                                  key_values(keys),
                                  proj.data(),
                                  proj_b.data(),
                                  log2_scale(scale),
                                  /*blocks_per_image=*/0};
    dispatch_16_bit(x.scalar_type(),
                    [&](auto type) { done = dispatch_heads<decltype(type)>(device, s, x, args); });
  }
  if (!done) {
    attention_block_aten(x, kv, norm_weight, norm_bias, eps, q_weight, q_bias, proj_weight,
                         proj_bias, num_heads, scale);
  }
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("attention_block_", TORCH_BOX(&pvt::cuda::attention_block_cuda));
}
