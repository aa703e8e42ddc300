// attention_block_ on the CPU. Parallel over tiles of tokens, with the projections folded into the
// keys and values where those are few; or, when tokens are too few to keep every thread busy, over
// columns of the weights and heads. The result depends neither on threads nor on the batch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/kernels.h"
#include "checks.h"
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
  return s.head_dim % 4 == 0 && slots <= kMaxSlots && s.N * (apart - folded) > 2 * folding;
}

// The images that one step works on: s.B of them.
struct Images {
  SraShape s;
  float* x;  // [B, N, C]
  const float* kv;
  int64_t kv_batch_stride, kv_stride;  // in elements

  const float* keys(int64_t b, int64_t h) const {
    return kv + b * kv_batch_stride + h * s.head_dim;
  }
  const float* values(int64_t b, int64_t h) const { return keys(b, h) + s.C; }
};

// run(image, first token, number of tokens) for every tile of tokens.
template <class Run>
void foreach_tile(const Images& images, const RowTiles& tiles, const Run& run) {
  const SraShape& s = images.s;
  parallel_tasks(s.B * tiles.count, [&](int64_t task) {
    const int64_t b = task / tiles.count, tile = task % tiles.count;
    run(b, images.x + (b * s.N + tiles.begin(tile)) * s.C, tiles.rows(tile));
  });
}

template <class scalar_t>
void run_folded(const Images& images, const AttentionArgs& args) {
  const SraShape& s = images.s;
  const int64_t image_size = PVT_BEST_LEVEL(folded_size<scalar_t>)(args);
  float* query_rows = thread_scratch<Scratch::kShared>(s.C * s.C + s.B * image_size);
  float* folded = query_rows + s.C * s.C;

  const auto unpack = PVT_BEST_LEVEL(unpack_query_weight<scalar_t>);
  const int64_t head_rows = s.C * s.head_dim;
  parallel_tasks(s.num_heads, [&](int64_t h) { unpack(args, h, query_rows + h * head_rows); });

  const auto fold_keys = PVT_BEST_LEVEL(fold_keys<scalar_t>);
  const auto fold_values = PVT_BEST_LEVEL(fold_values<scalar_t>);
  parallel_tasks(2 * s.B * s.num_heads, [&](int64_t task) {
    const int64_t b = task / 2 / s.num_heads, h = task / 2 % s.num_heads;
    float* image = folded + b * image_size;
    float* scratch = thread_scratch(PVT_BEST_LEVEL(fold_scratch_size<scalar_t>)(args));
    if (task % 2 == 0) {
      fold_keys(args, h, query_rows + h * head_rows, images.keys(b, h), images.kv_stride, image,
                scratch);
    } else {
      fold_values(args, h, images.values(b, h), images.kv_stride, image, scratch);
    }
  });

  const RowTiles tiles(s.N, s.B, PVT_BEST_LEVEL(kRowLimits<scalar_t>));
  const auto attention = PVT_BEST_LEVEL(folded_attention_rows<scalar_t>);
  const int64_t scratch = PVT_BEST_LEVEL(folded_scratch_size<scalar_t>)(args, tiles.height);
  foreach_tile(images, tiles, [&](int64_t b, float* x, int64_t rows) {
    attention(args, folded + b * image_size, x, rows, thread_scratch(scratch));
  });
}

// Floats of the packed keys and values of one image.
template <class scalar_t>
int64_t packed_image_size(const SraShape& s) {
  return s.num_heads *
         PVT_BEST_LEVEL(packed_head_size<AttentionType<scalar_t>>)(s.kv_len, s.head_dim);
}

// packed <- keys and values of all images, head after head
template <class scalar_t>
void pack_heads(const Images& images, float* packed) {
  const SraShape& s = images.s;
  const auto pack = PVT_BEST_LEVEL(pack_head<AttentionType<scalar_t>, float>);
  const int64_t head_size =
      PVT_BEST_LEVEL(packed_head_size<AttentionType<scalar_t>>)(s.kv_len, s.head_dim);
  const int64_t scratch = PVT_BEST_LEVEL(prepare_scratch_size<AttentionType<scalar_t>>)(s.head_dim);
  parallel_tasks(s.B * s.num_heads, [&](int64_t task) {
    const int64_t b = task / s.num_heads, h = task % s.num_heads;
    pack(images.keys(b, h), images.values(b, h), s.kv_len, s.head_dim, images.kv_stride,
         packed + task * head_size, thread_scratch(scratch));
  });
}

template <class scalar_t>
void run_rows(const Images& images, const AttentionArgs& args, const RowTiles& tiles) {
  const int64_t image_size = packed_image_size<scalar_t>(images.s);
  float* packed = thread_scratch<Scratch::kShared>(images.s.B * image_size);
  pack_heads<scalar_t>(images, packed);
  const auto attention = PVT_BEST_LEVEL(attention_rows<scalar_t>);
  const int64_t scratch = PVT_BEST_LEVEL(attention_scratch_size<scalar_t>)(args, tiles.height);
  foreach_tile(images, tiles, [&](int64_t b, float* x, int64_t rows) {
    attention(args, packed + b * image_size, x, rows, thread_scratch(scratch));
  });
}

template <class scalar_t>
void run_columns(const Images& images, const AttentionArgs& args) {
  const SraShape& s = images.s;
  const int64_t rows = s.B * s.N, image_size = packed_image_size<scalar_t>(s);
  const int64_t stride = PVT_BEST_LEVEL(round_up)(s.C, kPackedColumns);
  const int64_t depth = PVT_BEST_LEVEL(row_units<scalar_t>)(s.C);
  float* packed = thread_scratch<Scratch::kShared>(s.B * image_size + rows * (stride + depth));
  float* q = packed + s.B * image_size;  // [rows, stride], then the heads' output
  float* tokens = q + rows * stride;     // [rows, depth]
  const int64_t tile = columns_per_task(s.C, PVT_BEST_LEVEL(kMostColumns<scalar_t>));
  const int64_t column_tiles = (s.C + tile - 1) / tile;
  const int64_t threads = torch::stable::get_num_threads();  // take turns, as a rule

  pack_heads<scalar_t>(images, packed);
  const auto normalise = PVT_BEST_LEVEL(layer_norm_to_units<scalar_t>);
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    normalise(images.x + begin * s.C, s.C, end - begin, s.C, args.norm, tokens + begin * depth);
  });
  const auto linear = PVT_BEST_LEVEL(linear_columns<scalar_t>);
  parallel_tasks(column_tiles, [&](int64_t task) {
    const int64_t begin = task * tile;
    linear(args.q, tokens, rows, s.C, begin, std::min(tile, s.C - begin), q + begin, stride);
  });
  const auto attend = PVT_BEST_LEVEL(attend_one_head<scalar_t>);
  const int64_t scratch = PVT_BEST_LEVEL(attend_scratch_size<AttentionType<scalar_t>>)(s.head_dim);
  parallel_tasks(s.B * s.num_heads, [&](int64_t task) {
    const int64_t b = task / s.num_heads, h = task % s.num_heads;
    attend(args, h, q + b * s.N * stride, packed + task * image_size / s.num_heads, s.N,
           thread_scratch(scratch));
  });
  const auto to_tokens = PVT_BEST_LEVEL(rows_to_tokens<scalar_t>);
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    to_tokens(q + begin * stride, end - begin, s.C, tokens + begin * depth);
  });
  const auto project = PVT_BEST_LEVEL(residual_columns<scalar_t>);
  parallel_tasks(column_tiles, [&](int64_t task) {
    const int64_t begin = task * tile;
    project(args.proj, tokens, rows, s.C, begin, std::min(tile, s.C - begin), s.C,
            begin + threads * tile, images.x, thread_scratch(rows * tile));
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
  if (!have_packed_kernel(x, {q_weight, proj_weight})) {
    return attention_block_aten(x, kv, norm_weight, norm_bias, eps, q_weight, q_bias, proj_weight,
                                proj_bias, num_heads, scale);
  }
  const Vector norm_w(norm_weight), norm_b(norm_bias), q_b(q_bias), proj_b(proj_bias);
  const Tensor q = contiguous_of(q_weight);
  const Tensor proj = contiguous_of(proj_weight);
  const Tensor kv_rows = with_dense_rows(kv);
  AttentionArgs args;
  args.C = s.C, args.num_heads = s.num_heads, args.head_dim = s.head_dim, args.kv_len = s.kv_len;
  args.scale = static_cast<float>(scale);
  args.norm = {norm_w.data(), norm_b.data(), static_cast<float>(eps)};
  args.q = linear_args(q, q_b);
  args.proj = linear_args(proj, proj_b);
  float* tokens = static_cast<float*>(x.mutable_data_ptr());
  const float* keys = static_cast<const float*>(kv_rows.const_data_ptr());
  dispatch_packed_dtype(q_weight.scalar_type(), [&](auto type) {
    using scalar_t = decltype(type);
    const bool folds = is_worth_folding(s);
    const int64_t image_size =
        folds ? PVT_BEST_LEVEL(folded_size<scalar_t>)(args) : packed_image_size<scalar_t>(s);
    const int64_t at_once = images_at_once(s.B, image_size);
    for (int64_t b = 0; b < s.B; b += at_once) {
      Images images{s, tokens + b * s.N * s.C, keys + b * kv_rows.stride(0), kv_rows.stride(0),
                    kv_rows.stride(1)};
      images.s.B = std::min(at_once, s.B - b);
      const RowTiles tiles(s.N, images.s.B, PVT_BEST_LEVEL(kRowLimits<scalar_t>));
      if (folds) {
        run_folded<scalar_t>(images, args);
      } else if (tiles.too_few()) {
        run_columns<scalar_t>(images, args);
      } else {
        run_rows<scalar_t>(images, args, tiles);
      }
    }
  });
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("attention_block_", TORCH_BOX(&pvt::attention_block_cpu));
}
