// attention_block_ on the CPU. Parallel over tiles of tokens, with the projections folded into the
// keys and values where those are few; or, when tokens are too few to keep every thread busy, over
// columns of the weights and heads. The result depends neither on threads nor on the batch.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/args.h"
#include "cpu/cpu_level.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/attention_block_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
namespace {

// Whether folding the projections into keys and values saves more than it costs per image. Depends
// on nothing but the shapes of one image, so that neither threads nor the batch change the result.
bool is_worth_folding(const SraShape& s) {
  constexpr int64_t kMaxSlots = 512;
  const int64_t per_head = (s.kv_len + kPackedColumns - 1) / kPackedColumns * kPackedColumns;
  const int64_t slots = s.num_heads * per_head;
  // multiply-adds per token, and per image
  const int64_t apart = 2 * s.C * s.C + (per_head + s.kv_len) * s.C;
  const int64_t folded = 2 * s.C * slots;
  const int64_t folding = 2 * per_head * s.C * s.C;
  return s.head_dim % 2 == 0 && slots <= kMaxSlots && s.N * (apart - folded) > 2 * folding;
}

// What follows works on s.B images from image `first` on.

template <class scalar_t>
void run_folded(const SraShape& s, const AttentionArgs& args, const Tensor& kv, int64_t first,
                scalar_t* x) {
  const int64_t image_size = PVT_BEST_LEVEL(folded_size<scalar_t>)(args);
  float* query_rows = thread_scratch<Scratch::kShared>(s.C * s.C + s.B * image_size);
  float* folded = query_rows + s.C * s.C;
  const auto unpack = PVT_BEST_LEVEL(unpack_query_weight<scalar_t>);
  parallel_tasks(s.num_heads,
                 [&](int64_t h) { unpack(args, h, query_rows + h * s.C * s.head_dim); });
  const auto fold_keys = PVT_BEST_LEVEL(fold_keys<scalar_t>);
  const auto fold_values = PVT_BEST_LEVEL(fold_values<scalar_t>);
  const scalar_t* kv_data =
      static_cast<const scalar_t*>(kv.const_data_ptr()) + first * kv.stride(0);
  parallel_tasks(2 * s.B * s.num_heads, [&](int64_t task) {
    const int64_t b = task / 2 / s.num_heads, h = task / 2 % s.num_heads;
    const scalar_t* k = kv_data + b * kv.stride(0) + h * s.head_dim;
    float* scratch = thread_scratch(PVT_BEST_LEVEL(fold_scratch_size)(args));
    if (task % 2 == 0) {
      fold_keys(args, h, query_rows + h * s.C * s.head_dim, k, kv.stride(1),
                folded + b * image_size, scratch);
    } else {
      fold_values(args, h, k + s.C, kv.stride(1), folded + b * image_size, scratch);
    }
  });
  const RowTiles tiles(s.N, s.B);
  const auto attention = PVT_BEST_LEVEL(folded_attention_rows<scalar_t>);
  const int64_t scratch = PVT_BEST_LEVEL(folded_scratch_size<scalar_t>)(args, tiles.height);
  parallel_tasks(s.B * tiles.count, [&](int64_t task) {
    const int64_t b = task / tiles.count, tile = task % tiles.count;
    attention(args, folded + b * image_size, x + (b * s.N + tiles.begin(tile)) * s.C,
              tiles.rows(tile), thread_scratch(scratch));
  });
}

template <class scalar_t>
void run(const SraShape& s, const AttentionArgs& args, const Tensor& kv, int64_t first,
         scalar_t* x) {
  const int64_t head_size = PVT_BEST_LEVEL(packed_head_size<scalar_t>)(s.kv_len, s.head_dim);
  const int64_t C_padded = PVT_BEST_LEVEL(round_up)(s.C, kPackedColumns);
  const int64_t depth = PVT_BEST_LEVEL(num_units<scalar_t>)(s.C);
  const RowTiles tiles(s.N, s.B);
  const int64_t rows = tiles.too_few() ? s.B * s.N : 0;  // whose steps are shared by all threads
  float* packed =
      thread_scratch<Scratch::kShared>(s.B * s.num_heads * head_size + rows * (C_padded + depth));

  // packed <- kv, head after head
  const auto pack = PVT_BEST_LEVEL(pack_head<scalar_t>);
  const scalar_t* kv_data =
      static_cast<const scalar_t*>(kv.const_data_ptr()) + first * kv.stride(0);
  parallel_tasks(s.B * s.num_heads, [&](int64_t task) {
    const int64_t b = task / s.num_heads, h = task % s.num_heads;
    const scalar_t* k = kv_data + b * kv.stride(0) + h * s.head_dim;
    pack(k, k + s.C, s.kv_len, s.head_dim, kv.stride(1), packed + task * head_size,
         thread_scratch(4 * s.head_dim));
  });

  if (!tiles.too_few()) {
    const auto attention = PVT_BEST_LEVEL(attention_rows<scalar_t>);
    const int64_t scratch = PVT_BEST_LEVEL(attention_scratch_size<scalar_t>)(args, tiles.height);
    parallel_tasks(s.B * tiles.count, [&](int64_t task) {
      const int64_t b = task / tiles.count, tile = task % tiles.count;
      attention(args, packed + b * s.num_heads * head_size, x + (b * s.N + tiles.begin(tile)) * s.C,
                tiles.rows(tile), thread_scratch(scratch));
    });
    return;
  }

  float* q = packed + s.B * s.num_heads * head_size;  // [rows, C_padded], then the heads' output
  float* tokens = q + rows * C_padded;                // [rows, depth]
  const auto normalise = PVT_BEST_LEVEL(layer_norm_to_units<scalar_t>);
  const auto linear = PVT_BEST_LEVEL(linear_columns<scalar_t>);
  const auto attend = PVT_BEST_LEVEL(attend_one_head<scalar_t>);
  const auto project = PVT_BEST_LEVEL(project_columns<scalar_t>);
  const auto to_units = PVT_BEST_LEVEL(Operand<scalar_t>::floats_to_units);
  const int64_t columns = PVT_BEST_LEVEL(kTileColumns);
  const int64_t column_tiles = (s.C + columns - 1) / columns;
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    normalise(x + begin * s.C, end - begin, s.C, args.norm, tokens + begin * depth,
              thread_scratch(s.C));
  });
  parallel_tasks(column_tiles, [&](int64_t task) {
    const int64_t begin = task * columns;
    linear(args.q, tokens, rows, depth, begin, std::min(columns, s.C - begin), q + begin, C_padded);
  });
  parallel_tasks(s.B * s.num_heads, [&](int64_t task) {
    const int64_t b = task / s.num_heads, h = task % s.num_heads;
    attend(args, h, q + b * s.N * C_padded, packed + task * head_size, s.N,
           thread_scratch(PVT_BEST_LEVEL(attend_scratch_size)(s.head_dim)));
  });
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      to_units(q + i * C_padded, s.C, tokens + i * depth);
    }
  });
  parallel_tasks(column_tiles, [&](int64_t task) {
    const int64_t begin = task * columns;
    project(args, tokens, rows, begin, std::min(columns, s.C - begin), x,
            thread_scratch(rows * columns));
  });
}

}  // namespace

void attention_block_cpu(Tensor& x, const Tensor& kv, const Tensor& norm_weight,
                         const Tensor& norm_bias, double eps, const Tensor& q_weight,
                         const Tensor& q_bias, const Tensor& proj_weight, const Tensor& proj_bias,
                         int64_t num_heads, double scale) {
  const SraShape s = check_attention_block(x, kv, norm_weight, norm_bias, q_weight, q_bias,
                                           proj_weight, proj_bias, num_heads);
  if (s.B * s.N == 0) {
    return;
  }
  if (!has_packed_kernel(x, q_weight) || !has_packed_kernel(x, proj_weight)) {
    return attention_block_aten(x, kv, norm_weight, norm_bias, eps, q_weight, q_bias, proj_weight,
                                proj_bias, num_heads, scale);
  }
  const Vector norm_w(norm_weight), norm_b(norm_bias), q_b(q_bias), proj_b(proj_bias);
  const Tensor q = torch::stable::contiguous(q_weight);
  const Tensor proj = torch::stable::contiguous(proj_weight);
  const Tensor kv_rows = with_dense_rows(kv);
  AttentionArgs args;
  args.C = s.C, args.num_heads = s.num_heads, args.head_dim = s.head_dim, args.kv_len = s.kv_len;
  args.scale = static_cast<float>(scale);
  args.norm = {norm_w.data(), norm_b.data(), static_cast<float>(eps)};
  args.q = {packed_data(q), q_b.data()};
  args.proj = {packed_data(proj), proj_b.data()};
  dispatch_packed_dtype(x.scalar_type(), [&](auto type) {
    using scalar_t = decltype(type);
    const bool folds = is_worth_folding(s);
    const int64_t size =
        folds ? PVT_BEST_LEVEL(folded_size<scalar_t>)(args)
              : s.num_heads * PVT_BEST_LEVEL(packed_head_size<scalar_t>)(s.kv_len, s.head_dim);
    const int64_t at_once = images_at_once(s.B, size);
    for (int64_t b = 0; b < s.B; b += at_once) {
      SraShape part = s;
      part.B = std::min(at_once, s.B - b);
      scalar_t* data = static_cast<scalar_t*>(x.mutable_data_ptr()) + b * s.N * s.C;
      folds ? run_folded(part, args, kv_rows, b, data) : run(part, args, kv_rows, b, data);
    }
  });
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("attention_block_", TORCH_BOX(&pvt::attention_block_cpu));
}
