// The pointer-level body of sra_attention, compiled once per CPU level (foreach_level.h).
//
// Keys and values are few (49 at 224 x 224), so those of a head are packed once into panels that
// stay in the caches while the queries stream past, kQueryRows at a time. More than kKeyBlock keys
// are taken block by block with a running maximum, as in FlashAttention.
#ifndef PVT_BODY_SRA_ATTENTION
#define PVT_BODY_SRA_ATTENTION

#include "cpu/gemm.h"
#include "cpu/pack.h"

constexpr int64_t kKeyBlock = 256;
constexpr int64_t kQueryRows = kFewRows;  // they share each key read; their scores take 24 or 32 KB

// Units along `keys` keys: with as many zeros as fill the last tile of the tile unit.
template <class scalar_t>
inline int64_t key_units(int64_t keys) {
  const int64_t units = prepared_depth<scalar_t>(keys);
  return kHasTiles<scalar_t> ? round_up(units, kPanel) : units;
}

// The packed keys of one head are prepared along head_dim (gemm.h); its values follow, prepared
// along the keys, key_units(kv_len) deep.
template <class scalar_t>
inline int64_t packed_keys_size(int64_t kv_len, int64_t head_dim) {
  return prepared_size<scalar_t>(head_dim, kv_len);
}

template <class scalar_t>
inline int64_t packed_head_size(int64_t kv_len, int64_t head_dim) {
  return packed_keys_size<scalar_t>(kv_len, head_dim) +
         key_units<scalar_t>(kv_len) * round_up(head_dim, kPreparedColumns<scalar_t>);
}

// Packs one head.
//   k, v: [kv_len, head_dim], rows kv_stride apart   scratch: see prepare_scratch_size(head_dim)
template <class scalar_t, class In>
inline void pack_head(const In* k, const In* v, int64_t kv_len, int64_t head_dim, int64_t kv_stride,
                      float* packed, float* scratch) {
  const int64_t depth = key_units<scalar_t>(kv_len);
  float* values = packed + packed_keys_size<scalar_t>(kv_len, head_dim);
  prepare_columns<scalar_t>(k, kv_len, head_dim, kv_stride, packed, scratch);
  for (int64_t j = 0; j < head_dim; j += kPanel) {
    prepare_panel<scalar_t>(v + j, kv_stride, kv_len, head_dim - j < kPanel ? head_dim - j : kPanel,
                            depth * Operand<scalar_t>::kPerUnit,
                            values + prepared_offset<scalar_t>(j, 0, depth));
  }
}

// The softmax is taken of powers of two: 2^(scale2 * s_j), scale2 = scale / ln 2.
constexpr float kLog2E = 1.44269504088896341f;

// s_j <- scale2 * s_j, returns the greatest of them and m. What pads the last vector becomes -inf.
inline float scale_row(float* s, int64_t keys, float scale2, float m) {
  const Vec scale = broadcast(scale2);
  Vec best = broadcast(m);
  int64_t j = 0;
  for (; j + kLanes <= keys; j += kLanes) {
    const Vec v = load(s + j) * scale;
    store(s + j, v);
    best = max(best, v);
  }
  if (j < keys) {
    const Vec v = first_lanes(load(s + j) * scale, keys - j, -INFINITY);
    store(s + j, v);
    best = max(best, v);
  }
  return reduce_max(best);
}

// 2^x for x <= 0 on the way to a product in scalar_t.
template <class scalar_t>
inline Vec exp2_before(Vec x) {
  if constexpr (std::is_same_v<scalar_t, BFloat16>) {
    return coarse_exp2_nonpositive(x);
  } else {
    return exp2_nonpositive(x);
  }
}

// s <- p as left-hand units, p_j = 2^(s_j - m); returns sum_j p_j. Those that pad the last vector
// are 0.
//   s: by scale_row(), which m comes from: however large, the greatest of them gives 1
template <class scalar_t>
inline float softmax_row(float* s, int64_t keys, float m) {
  using Element = typename Operand<scalar_t>::Element;  // no wider than a float
  Element* p = reinterpret_cast<Element*>(s);
  // A row of nothing but -inf has no weight yet, rather than -inf - (-inf).
  const Vec shift = broadcast(m == -INFINITY ? 0.f : m);
  Vec sum{};
  for (int64_t j = 0; j < keys; j += kLanes) {
    const Vec value = exp2_before<scalar_t>(load(s + j) - shift);
    store_floats(value, p + j);
    sum += value;
  }
  return reduce_add(sum);
}

// Scores that stay in registers: those of 7 x 7 keys, all of an image of 224 x 224.
constexpr int kFewVecs = (7 * 7 + kLanes - 1) / kLanes;

inline bool are_few_keys(int64_t keys) {
  return keys > (kFewVecs - 1) * kLanes && keys <= kFewVecs * kLanes;
}

// v_j <- 2^(v_j - max v), returns their sum; what pads the last vector becomes 0.
//   keys: are_few_keys()
template <class scalar_t>
inline float softmax_few(Vec (&v)[kFewVecs], int64_t keys) {
  v[kFewVecs - 1] = first_lanes(v[kFewVecs - 1], keys - (kFewVecs - 1) * kLanes, -INFINITY);
  Vec best = v[0];
#pragma GCC unroll 16
  for (int j = 1; j < kFewVecs; ++j) {
    best = max(best, v[j]);
  }
  const float m = reduce_max(best);
  const Vec shift = broadcast(m == -INFINITY ? 0.f : m);
  Vec sum{};
#pragma GCC unroll 16
  for (int j = 0; j < kFewVecs; ++j) {
    v[j] = exp2_before<scalar_t>(v[j] - shift);
    sum += v[j];
  }
  return reduce_add(sum);
}

// softmax_row() after scale_row() of a row of are_few_keys().
template <class scalar_t>
inline float softmax_few_row(float* s, int64_t keys, float scale2) {
  using Element = typename Operand<scalar_t>::Element;
  Vec v[kFewVecs];
#pragma GCC unroll 16
  for (int j = 0; j < kFewVecs; ++j) {
    v[j] = load(s + j * kLanes) * scale2;
  }
  const float sum = softmax_few<scalar_t>(v, keys);
#pragma GCC unroll 16
  for (int j = 0; j < kFewVecs; ++j) {
    store_floats(v[j], reinterpret_cast<Element*>(s) + j * kLanes);
  }
  return sum;
}

// Zeros from where softmax_row() ends to the end of key_units(keys).   s: by softmax_row()
template <class scalar_t>
inline void pad_row(float* s, int64_t keys) {
  using Op = Operand<scalar_t>;
  using Element = typename Op::Element;
  const int64_t first = round_up(keys, kLanes), end = key_units<scalar_t>(keys) * Op::kPerUnit;
  if (first < end) {
    __builtin_memset(reinterpret_cast<Element*>(s) + first, 0, (end - first) * sizeof(Element));
  }
}

// Units of a row of kKeyBlock scores, if they are not written over the scores themselves.
template <class scalar_t>
constexpr int64_t kScoreUnits =
    Operand<scalar_t>::kElementwise ? 0 : left_units<scalar_t>(kKeyBlock);

// Floats of working memory that attend() needs per thread.
template <class scalar_t>
inline int64_t attend_scratch_size(int64_t head_dim) {
  return kQueryRows * (left_units<scalar_t>(head_dim) + kKeyBlock + round_up(head_dim, kPanel) +
                       kScoreUnits<scalar_t>);
}

// softmax(scale * q k^T) v for `num_rows` queries of one head, kQueryRows at a time.
//   packed: see pack_head
//   read(row, units): the row's query as units   write(row, o): takes its output, [head_dim] floats
template <class scalar_t, class Read, class Write>
inline void attend(const float* packed, int64_t num_rows, int64_t kv_len, int64_t head_dim,
                   float scale, float* scratch, const Read& read, const Write& write) {
  using Op = Operand<scalar_t>;
  const int64_t depth = prepared_depth<scalar_t>(head_dim);
  const int64_t q_size = left_units<scalar_t>(head_dim);
  constexpr int64_t p_stride = Op::kElementwise ? kKeyBlock : kScoreUnits<scalar_t>;
  const int64_t o_stride = round_up(head_dim, kPanel);
  float* q_tile = scratch;                  // [kQueryRows, q_size]
  float* s = q_tile + kQueryRows * q_size;  // [kQueryRows, kKeyBlock], then as units
  float* o = s + kQueryRows * kKeyBlock;    // [kQueryRows, o_stride]
  float* p = Op::kElementwise ? s : o + kQueryRows * o_stride;  // [kQueryRows, p_stride]
  const float* keys = packed;
  const float* values = packed + packed_keys_size<scalar_t>(kv_len, head_dim);

  for (int64_t row = 0; row < num_rows; row += kQueryRows) {
    const int64_t rows = num_rows - row < kQueryRows ? num_rows - row : kQueryRows;
    for (int64_t i = 0; i < rows; ++i) {
      read(row + i, q_tile + i * q_size);
    }
    float m[kQueryRows], l[kQueryRows];
    for (int64_t i = 0; i < rows; ++i) {
      m[i] = -INFINITY;
      l[i] = 0.f;
    }
    for (int64_t first = 0; first < kv_len; first += kKeyBlock) {
      const int64_t num_keys = kv_len - first < kKeyBlock ? kv_len - first : kKeyBlock;
      // s <- q k^T
      gemm_prepared<scalar_t>(rows, num_keys, depth, q_tile, q_size, keys + first * depth, depth, s,
                              kKeyBlock, /*accumulate=*/false);
      // s <- scale2 * s, and m of all rows
      // s <- 2^(s - m) as units;  l <- l * delta + sum s;  o <- o * delta
      float previous[kQueryRows];
      const bool few = are_few_keys(kv_len);
      if (!few) {
        for (int64_t i = 0; i < rows; ++i) {
          previous[i] = m[i];
          m[i] = scale_row(s + i * kKeyBlock, num_keys, scale * kLog2E, m[i]);
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        float* row = s + i * kKeyBlock;
        const float sum = few ? softmax_few_row<scalar_t>(row, num_keys, scale * kLog2E)
                              : softmax_row<scalar_t>(row, num_keys, m[i]);
        if constexpr (Op::kElementwise) {
          pad_row<scalar_t>(row, num_keys);
        } else {
          Op::to_left(row, num_keys, p + i * p_stride);
        }
        if (first > 0 && m[i] != previous[i]) {
          const float delta = std::exp2(previous[i] - m[i]);
          l[i] *= delta;
          for (int64_t d = 0; d < o_stride; d += kLanes) {
            store(o + i * o_stride + d, load(o + i * o_stride + d) * delta);
          }
        }
        l[i] += sum;
      }
      // o <- o + s v
      const int64_t value_depth = key_units<scalar_t>(kv_len);
      gemm_prepared<scalar_t>(rows, head_dim, key_units<scalar_t>(num_keys), p, p_stride,
                              values + prepared_offset<scalar_t>(0, first, value_depth),
                              value_depth, o, o_stride, /*accumulate=*/first > 0);
    }
    // o <- o / l
    for (int64_t i = 0; i < rows; ++i) {
      const float inverse = 1.f / l[i];
      for (int64_t d = 0; d < o_stride; d += kLanes) {
        store(o + i * o_stride + d, load(o + i * o_stride + d) * inverse);
      }
      write(row + i, o + i * o_stride);
    }
  }
}

// The same from and to rows of scalar_t.
//   q, out: [num_rows, head_dim], rows q_stride and out_stride apart
template <class scalar_t>
inline void attend_rows(const scalar_t* q, int64_t q_stride, const float* packed, int64_t num_rows,
                        int64_t kv_len, int64_t head_dim, float scale, scalar_t* out,
                        int64_t out_stride, float* scratch) {
  attend<scalar_t>(
      packed, num_rows, kv_len, head_dim, scale, scratch,
      [=](int64_t row, float* units) {
        Operand<scalar_t>::to_left(q + row * q_stride, head_dim, units);
      },
      [=](int64_t row, const float* o) { from_float(o, head_dim, out + row * out_stride); });
}

#endif  // PVT_BODY_SRA_ATTENTION
