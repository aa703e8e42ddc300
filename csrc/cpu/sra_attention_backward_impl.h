// The pointer-level body of sra_attention_backward, compiled once per CPU level (foreach_level.h).
//
// Probabilities are computed again, kGradRows queries by all keys at a time, so they never leave
// the caches. With P the probabilities, S the scores before scaling, dO the gradient:
//   dP = dO V^T    dS = scale * P o (dP - rowsum(P o dP))
//   dQ = dS K      dK = dS^T Q      dV = P^T dO
// All products are of floats, whatever the dtype of the tensors.

#include "cpu/pack.h"
#include "cpu/sra_attention_impl.h"

constexpr int64_t kGradRows = 48;

// Where the parts of a packed head begin: keys and values as columns, then keys as rows.
inline int64_t grad_columns_size(int64_t kv_len, int64_t head_dim) {
  return round_up(kv_len, kPanel) * head_dim;
}

inline int64_t grad_packed_size(int64_t kv_len, int64_t head_dim) {
  return 2 * grad_columns_size(kv_len, head_dim) + kv_len * round_up(head_dim, kPanel);
}

// Packs one head.  k, v: [kv_len, head_dim], rows kv_stride apart   rows: scratch, [4, head_dim]
template <class scalar_t>
inline void pack_grad_head(const scalar_t* k, const scalar_t* v, int64_t kv_len, int64_t head_dim,
                           int64_t kv_stride, float* packed, float* rows) {
  const int64_t size = grad_columns_size(kv_len, head_dim);
  pack_columns<float>(k, kv_len, head_dim, kv_stride, packed, rows);
  pack_columns<float>(v, kv_len, head_dim, kv_stride, packed + size, rows);
  pack_rows<float>(k, kv_len, head_dim, kv_stride, packed + 2 * size, kv_len * kPanel);
}

// p <- softmax(scale * p), dp <- the gradient of p before scaling and softmax, for one query
//   p: its scores   dp: the gradient of its probabilities   both rounded up to whole vectors
inline void softmax_backward_row(float* p, float* dp, int64_t kv_len, float scale) {
  const float m = scale_row(p, kv_len, scale * kLog2E, -INFINITY);
  const Vec inverse = broadcast(1.f / softmax_row<float>(p, kv_len, m));
  Vec sum{};
  for (int64_t j = 0; j < kv_len; j += kLanes) {
    const Vec prob = load(p + j) * inverse;
    store(p + j, prob);
    sum = fmadd(prob, load(dp + j), sum);
  }
  const Vec mean = broadcast(reduce_add(sum)), factor = broadcast(scale);
  for (int64_t j = 0; j < kv_len; j += kLanes) {
    store(dp + j, factor * load(p + j) * (load(dp + j) - mean));
  }
}

// sums += t^T rows: of keys, over the queries of a tile
//   t: [num_rows, kv_len], rows t_stride apart   rows: [num_rows, head_dim], contiguous
//   sums: [kv_len, round_up(head_dim, kPanel)]
//   columns: scratch, [kv_len, kGradRows]   panels: scratch, kGradRows * round_up(head_dim, kPanel)
inline void add_keys(const float* t, int64_t t_stride, const float* rows, int64_t num_rows,
                     int64_t kv_len, int64_t head_dim, bool accumulate, float* sums, float* columns,
                     float* panels) {
  for (int64_t i = 0; i < num_rows; i += 4) {
    transpose_into_panel(t + i * t_stride, t_stride, kv_len,
                         [=](int64_t j) { return columns + j * kGradRows + i; });
  }
  pack_rows<float>(rows, num_rows, head_dim, head_dim, panels, kGradRows * kPanel);
  gemm<float>(kv_len, head_dim, num_rows, columns, kGradRows, panels, kGradRows * kPanel, sums,
              round_up(head_dim, kPanel), accumulate);
}

// Floats of working memory that attend_backward() needs.
inline int64_t attend_backward_scratch_size(int64_t kv_len, int64_t head_dim) {
  return kGradRows *
         (2 * round_up(kv_len, kPanel) + kv_len + 2 * head_dim + 2 * round_up(head_dim, kPanel));
}

// The gradients of `num_rows` queries of one head, and what these queries add to those of its keys
// and values.
//   packed: see pack_grad_head   q, grad: [num_rows, head_dim], strided
//   d_q: the same, or null   d_kv: [2, kv_len, round_up(head_dim, kPanel)], written, or null
template <class scalar_t>
inline void attend_backward(const float* packed, const scalar_t* q, int64_t q_stride,
                            const scalar_t* grad, int64_t grad_stride, int64_t num_rows,
                            int64_t kv_len, int64_t head_dim, float scale, scalar_t* d_q,
                            int64_t d_q_stride, float* d_kv, float* scratch) {
  const int64_t s_stride = round_up(kv_len, kPanel), out_stride = round_up(head_dim, kPanel);
  const float* keys = packed;
  const float* values = keys + grad_columns_size(kv_len, head_dim);
  const float* key_rows = values + grad_columns_size(kv_len, head_dim);
  float* p = scratch;                                 // [kGradRows, s_stride]
  float* ds = p + kGradRows * s_stride;               // [kGradRows, s_stride]
  float* out = ds + kGradRows * s_stride;             // [kGradRows, out_stride]
  float* panels = out + kGradRows * out_stride;       // see add_keys
  float* q_rows = panels + kGradRows * out_stride;    // [kGradRows, head_dim]
  float* grad_rows = q_rows + kGradRows * head_dim;   // [kGradRows, head_dim]
  float* columns = grad_rows + kGradRows * head_dim;  // [kv_len, kGradRows]
  for (int64_t row = 0; row < num_rows; row += kGradRows) {
    const int64_t rows = num_rows - row < kGradRows ? num_rows - row : kGradRows;
    for (int64_t i = 0; i < rows; ++i) {
      to_float(q + (row + i) * q_stride, head_dim, q_rows + i * head_dim);
      to_float(grad + (row + i) * grad_stride, head_dim, grad_rows + i * head_dim);
    }
    gemm<float>(rows, kv_len, head_dim, q_rows, head_dim, keys, head_dim * kPanel, p, s_stride,
                /*accumulate=*/false);
    gemm<float>(rows, kv_len, head_dim, grad_rows, head_dim, values, head_dim * kPanel, ds,
                s_stride, /*accumulate=*/false);
    for (int64_t i = 0; i < rows; ++i) {
      softmax_backward_row(p + i * s_stride, ds + i * s_stride, kv_len, scale);
    }
    if (d_q != nullptr) {
      gemm<float>(rows, head_dim, kv_len, ds, s_stride, key_rows, kv_len * kPanel, out, out_stride,
                  /*accumulate=*/false);
      for (int64_t i = 0; i < rows; ++i) {
        from_float(out + i * out_stride, head_dim, d_q + (row + i) * d_q_stride);
      }
    }
    if (d_kv != nullptr) {
      add_keys(ds, s_stride, q_rows, rows, kv_len, head_dim, row > 0, d_kv, columns, panels);
      add_keys(p, s_stride, grad_rows, rows, kv_len, head_dim, row > 0, d_kv + kv_len * out_stride,
               columns, panels);
    }
  }
}

// out[0:head_dim] <- the sum of `parts` rows, part_stride apart   sum: scratch, [head_dim]
template <class scalar_t>
inline void add_parts(const float* part, int64_t parts, int64_t part_stride, int64_t head_dim,
                      scalar_t* out, float* sum) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    Vec total = load(part + d);
    for (int64_t i = 1; i < parts; ++i) {
      total += load(part + i * part_stride + d);
    }
    store(sum + d, total);
  }
  from_float(sum, head_dim, out);
}
