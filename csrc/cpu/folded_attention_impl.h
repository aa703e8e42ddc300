// attention_block_ with the projections folded into the keys and values, for few keys. Part of the
// body of attention_block_ (foreach_level.h).
//
//   q k^T = LayerNorm(x) (Wq^T k^T) + bq k^T        P v Wproj^T = P (v Wproj^T)
//
// Once per image the keys and values of every head take the projections in; then a token costs two
// products with one column per head and key instead of four. A head has kv_len columns,
// rounded up, those beyond its keys zero; all heads' columns side by side are the slots.

#include "cpu/gemm.h"
#include "cpu/layer_norm.h"
#include "cpu/linear.h"
#include "cpu/sra_attention_impl.h"

template <class scalar_t>
inline int64_t slots_per_head(const AttentionArgs& args) {
  return round_up(args.kv_len, kPreparedColumns<AttentionType<scalar_t>>);
}

template <class scalar_t>
inline int64_t num_slots(const AttentionArgs& args) {
  return args.num_heads * slots_per_head<scalar_t>(args);
}

// The folded keys of an image are prepared (gemm.h) along C; its folded values follow, prepared
// along the slots, then the keys' products with the bias, [slots].
template <class scalar_t>
inline float* folded_values(const AttentionArgs& args, float* folded) {
  return folded + prepared_size<AttentionType<scalar_t>>(args.C, num_slots<scalar_t>(args));
}

template <class scalar_t>
inline float* folded_bias(const AttentionArgs& args, float* folded) {
  return folded_values<scalar_t>(args, folded) +
         prepared_size<AttentionType<scalar_t>>(num_slots<scalar_t>(args), args.C);
}

template <class scalar_t>
inline int64_t folded_size(const AttentionArgs& args) {
  using Type = AttentionType<scalar_t>;
  return prepared_size<Type>(args.C, num_slots<scalar_t>(args)) +
         prepared_size<Type>(num_slots<scalar_t>(args), args.C) + num_slots<scalar_t>(args);
}

// rows <- Wq^T of head h, [C, head_dim] floats
template <class scalar_t>
inline void unpack_query_weight(const AttentionArgs& args, int64_t h, float* rows) {
  constexpr int64_t per_unit = Operand<scalar_t>::kPerUnit;
  for (int64_t d = 0; d < args.head_dim; ++d) {
    const float* column = args.q.weight + panel_offset(h * args.head_dim + d, args.q.panel_stride);
    for (int64_t c = 0; c < args.C; ++c) {
      const float* unit = column + c / per_unit * kPanel;
      float* weight = rows + c * args.head_dim + d;
      if constexpr (Operand<scalar_t>::kHeader > 0) {
        const float scale = column[args.q.panel_stride - kPanel];
        *weight = (reinterpret_cast<const uint8_t*>(unit)[c % per_unit] - 128) * scale;
      } else {
        to_float(reinterpret_cast<const scalar_t*>(unit) + c % per_unit, 1, weight);
      }
    }
  }
}

// Floats of working memory that fold_keys() and fold_values() need.
template <class scalar_t>
inline int64_t fold_scratch_size(const AttentionArgs& args) {
  const int64_t slots = slots_per_head<scalar_t>(args), depth = row_units<scalar_t>(args.head_dim);
  const int64_t keys = slots * args.head_dim + 4 * args.head_dim, values = slots * depth;
  return (keys > values ? keys : values) + slots * round_up(args.C, kPanel);
}

// Head h of the folded keys and of the bias.
//   query_rows: see unpack_query_weight   k: [kv_len, head_dim], rows kv_stride apart
template <class scalar_t>
inline void fold_keys(const AttentionArgs& args, int64_t h, const float* query_rows, const float* k,
                      int64_t kv_stride, float* folded, float* scratch) {
  using Type = AttentionType<scalar_t>;
  const int64_t C = args.C, head_dim = args.head_dim, slots = slots_per_head<scalar_t>(args);
  const int64_t depth = prepared_depth<Type>(C);
  float* keys = scratch;                  // panels [slots / kPanel][head_dim][kPanel]
  float* rows = keys + slots * head_dim;  // [4, head_dim]
  float* sums = rows + 4 * head_dim;      // [C, slots]
  for (int64_t j = 0; j < slots; j += 4) {
    for (int64_t i = 0; i < 4; ++i) {
      if (j + i < args.kv_len) {
        __builtin_memcpy(rows + i * head_dim, k + (j + i) * kv_stride, head_dim * sizeof(float));
      } else {
        __builtin_memset(rows + i * head_dim, 0, head_dim * sizeof(float));
      }
    }
    float* column = keys + panel_offset(j, head_dim * kPanel);
    transpose_into_panel(rows, head_dim, head_dim, [=](int64_t d) { return column + d * kPanel; });
  }
  float* bias = folded_bias<scalar_t>(args, folded) + h * slots;
  for (int64_t j = 0; j < slots; ++j) {
    const float* column = keys + panel_offset(j, head_dim * kPanel);
    bias[j] = 0.f;
    for (int64_t d = 0; d < head_dim; ++d) {
      bias[j] += args.q.bias[h * head_dim + d] * column[d * kPanel];
    }
  }
  gemm<float>(C, slots, head_dim, query_rows, head_dim, keys, head_dim * kPanel, sums, slots,
              /*accumulate=*/false);
  for (int64_t j = 0; j < slots; j += kPanel) {
    prepare_panel<Type>(sums + j, slots, C, kPanel, C,
                        folded + prepared_offset<Type>(h * slots + j, 0, depth));
  }
}

// Head h of the folded values.
//   v: [kv_len, head_dim], rows kv_stride apart; head_dim is a multiple of the inputs of a unit
template <class scalar_t>
inline void fold_values(const AttentionArgs& args, int64_t h, const float* v, int64_t kv_stride,
                        float* folded, float* scratch) {
  using Type = AttentionType<scalar_t>;
  const int64_t head_dim = args.head_dim, slots = slots_per_head<scalar_t>(args);
  const int64_t depth = row_units<scalar_t>(head_dim), width = round_up(args.C, kPanel);
  const int64_t value_depth = prepared_depth<Type>(num_slots<scalar_t>(args));
  float* rows = scratch;               // [kv_len, depth]
  float* sums = rows + slots * depth;  // [kv_len, width]
  for (int64_t j = 0; j < args.kv_len; ++j) {
    Operand<scalar_t>::to_left(v + j * kv_stride, head_dim, rows + j * depth);
  }
  gemm<scalar_t>(args.kv_len, width, right_units<scalar_t>(head_dim), rows, depth,
                 args.proj.weight + h * head_dim / Operand<scalar_t>::kPerUnit * kPanel,
                 args.proj.panel_stride, sums, width, /*accumulate=*/false);
  scale_sums<scalar_t>(args.proj, 0, width, args.kv_len, sums, width);
  float* values = folded_values<scalar_t>(args, folded);
  for (int64_t c = 0; c < width; c += kPanel) {
    prepare_panel<Type>(sums + c, width, args.kv_len, kPanel, slots,
                        values + prepared_offset<Type>(c, h * slots, value_depth));
  }
}

// p <- softmax(scale * (s + bias)) of one head, its zeros included; s is overwritten
//   s, bias, p: [slots_per_head]
template <class scalar_t>
inline void fold_softmax(const AttentionArgs& args, float* s, const float* bias,
                         typename Operand<scalar_t>::Element* p) {
  const int64_t keys = args.kv_len, used = round_up(keys, kLanes),
                slots = slots_per_head<scalar_t>(args);
  const float scale2 = args.scale * kLog2E;
  if (are_few_keys(keys)) {
    Vec v[kFewVecs];
#pragma GCC unroll 16
    for (int j = 0; j < kFewVecs; ++j) {
      v[j] = (load(s + j * kLanes) + load(bias + j * kLanes)) * scale2;
    }
    const float inverse = 1.f / softmax_few<scalar_t>(v, keys);
#pragma GCC unroll 16
    for (int j = 0; j < kFewVecs; ++j) {
      store_floats(v[j] * inverse, p + j * kLanes);
    }
  } else {
    add_bias(s, slots, bias, 1, slots);
    const float m = scale_row(s, keys, scale2, -INFINITY);
    const float inverse = 1.f / softmax_row<float>(s, keys, m);
    for (int64_t j = 0; j < used; j += kLanes) {
      store_floats(load(s + j) * inverse, p + j);
    }
  }
  for (int64_t j = used; j < slots; j += kLanes) {
    store_floats(Vec{}, p + j);
  }
}

// Floats of working memory that folded_attention_rows() needs.
template <class scalar_t>
inline int64_t folded_scratch_size(const AttentionArgs& args, int64_t rows) {
  using Type = AttentionType<scalar_t>;
  const int64_t slots = num_slots<scalar_t>(args), width = round_up(args.C, kPanel);
  return rows * (left_units<Type>(args.C) + slots + left_units<Type>(slots) + width);
}

// x <- x + proj(attend(q(LayerNorm(x)), kv)) for rows of one image
//   x: [rows, C]   folded: the image's keys, values and bias
template <class scalar_t>
inline void folded_attention_rows(const AttentionArgs& args, float* folded, float* x, int64_t rows,
                                  float* scratch) {
  using Type = AttentionType<scalar_t>;
  const int64_t C = args.C, width = round_up(C, kPanel);
  const int64_t slots = num_slots<scalar_t>(args), per_head = slots_per_head<scalar_t>(args);
  const int64_t depth = left_units<Type>(C), key_depth = prepared_depth<Type>(C);
  const int64_t p_size = left_units<Type>(slots), value_depth = prepared_depth<Type>(slots);
  const float* bias = folded_bias<scalar_t>(args, folded);
  float* tokens = scratch;           // [rows, depth]
  float* s = tokens + rows * depth;  // [rows, slots]
  float* p = s + rows * slots;       // [rows, p_size], s as units
  float* out = p + rows * p_size;    // [rows, width]
  layer_norm_to_units<Type>(x, C, rows, C, args.norm, tokens);
  gemm_prepared<Type>(rows, slots, key_depth, tokens, depth, folded, key_depth, s, slots,
                      /*accumulate=*/false);
  for (int64_t i = 0; i < rows; ++i) {
    using Element = typename Operand<Type>::Element;
    float* scores = s + i * slots;
    float* units = p + i * p_size;
    Element* row = reinterpret_cast<Element*>(Operand<Type>::kElementwise ? units : scores);
    for (int64_t h = 0; h < args.num_heads; ++h) {
      fold_softmax<Type>(args, scores + h * per_head, bias + h * per_head, row + h * per_head);
    }
    if constexpr (!Operand<Type>::kElementwise) {
      Operand<Type>::to_left(scores, slots, units);
    }
  }
  gemm_prepared<Type>(rows, C, value_depth, p, p_size, folded_values<scalar_t>(args, folded),
                      value_depth, out, width, /*accumulate=*/false);
  // The values have the scale of proj; what is left is its bias.
  add_residual<Type>(args.proj, 0, C, rows, out, width, x, C);
}
