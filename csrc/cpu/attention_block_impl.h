// The pointer-level body of attention_block_, compiled once per CPU level (foreach_level.h): the
// queries and the outputs of a tile of tokens stay in the second-level cache, their scores in the
// first.

#include "cpu/folded_attention_impl.h"
#include "cpu/layer_norm.h"
#include "cpu/linear.h"
#include "cpu/sra_attention_impl.h"

// Replaces the queries of head h by its output, for rows of one image.
//   q: [rows, round_up(C, kPanel)] floats   packed: the head's keys and values, see pack_head
template <class scalar_t>
inline void attend_one_head(const AttentionArgs& args, int64_t h, float* q, const float* packed,
                            int64_t rows, float* scratch) {
  using Type = AttentionType<scalar_t>;
  const int64_t stride = round_up(args.C, kPanel), head_dim = args.head_dim;
  float* head = q + h * head_dim;
  attend<Type>(
      packed, rows, args.kv_len, head_dim, args.scale, scratch,
      [=](int64_t row, float* units) {
        Operand<Type>::to_left(head + row * stride, head_dim, units);
      },
      [=](int64_t row, const float* o) {
        __builtin_memcpy(head + row * stride, o, head_dim * sizeof(float));
      });
}

// tokens <- the heads' output as units   rows: [count, round_up(C, kPanel)]
template <class scalar_t>
inline void rows_to_tokens(const float* rows, int64_t count, int64_t C, float* tokens) {
  for (int64_t i = 0; i < count; ++i) {
    Operand<scalar_t>::to_left(rows + i * round_up(C, kPanel), C,
                               tokens + i * row_units<scalar_t>(C));
  }
}

// Floats of working memory that attention_rows() needs.
template <class scalar_t>
inline int64_t attention_scratch_size(const AttentionArgs& args, int64_t rows) {
  return rows * (round_up(args.C, kPanel) + row_units<scalar_t>(args.C)) +
         attend_scratch_size<AttentionType<scalar_t>>(args.head_dim);
}

// x <- x + proj(attend(q(LayerNorm(x)), kv)) for rows of one image
//   x: [rows, C]   packed: the heads' keys and values, one head after the other
template <class scalar_t>
inline void attention_rows(const AttentionArgs& args, const float* packed, float* x, int64_t rows,
                           float* scratch) {
  const int64_t C = args.C, stride = round_up(C, kPanel), depth = row_units<scalar_t>(C);
  float* q = scratch;                 // [rows, stride], then the heads' output
  float* tokens = q + rows * stride;  // [rows, depth]
  float* attend_scratch = tokens + rows * depth;
  layer_norm_to_units<scalar_t>(x, C, rows, C, args.norm, tokens);
  linear_columns<scalar_t>(args.q, tokens, rows, C, 0, C, q, stride);
  const int64_t head_size = packed_head_size<AttentionType<scalar_t>>(args.kv_len, args.head_dim);
  for (int64_t h = 0; h < args.num_heads; ++h) {
    attend_one_head<scalar_t>(args, h, q, packed + h * head_size, rows, attend_scratch);
  }
  rows_to_tokens<scalar_t>(q, rows, C, tokens);
  multiply_columns<scalar_t>(args.proj, tokens, rows, C, 0, C, q, stride);
  add_residual<scalar_t>(args.proj, 0, C, rows, q, stride, x, C);
}
