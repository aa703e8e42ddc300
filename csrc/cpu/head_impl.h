// The pointer-level body of head, compiled once per CPU level (foreach_level.h).
//
// Scores are products of rows as they lie in memory: a weight is read once and multiplied by few
// rows, so bringing it into panels would take longer than the product.

#include "cpu/convert.h"
#include "cpu/vec.h"

constexpr int kHeadColumns = 4;
constexpr int kHeadRows = 3;  // 3 x 4 sums + 3 + 1 of 16 registers

// sum[i][j] += x[i][c:c + count] weight[j][c:c + count]   count: kLanes or, at the end, less
template <int kRows>
inline void add_products(const float* x, int64_t C, const float* const* weight, int64_t c,
                         int64_t count, Vec (*sum)[kHeadColumns]) {
  Vec row[kRows];
  for (int i = 0; i < kRows; ++i) {
    row[i] = load_floats(x + i * C + c, count);
  }
  for (int j = 0; j < kHeadColumns; ++j) {
    const Vec column = load_floats(weight[j] + c, count);
    for (int i = 0; i < kRows; ++i) {
      sum[i][j] = fmadd(row[i], column, sum[i][j]);
    }
  }
}

// out[i][0:count] <- x[i] weight^T + bias   for i < kRows, with the weights of kHeadColumns outputs
// A sum is taken in the order of C whatever kRows is.
//   x: [kRows, C]   bias, out: at the first of these outputs, out's rows out_stride apart
template <int kRows>
inline void head_tile(const float* x, int64_t C, const float* const* weight, const float* bias,
                      int64_t count, float* out, int64_t out_stride) {
  Vec sum[kRows][kHeadColumns] = {};
  const int64_t whole = C / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    add_products<kRows>(x, C, weight, c, kLanes, sum);
  }
  if (whole < C) {
    add_products<kRows>(x, C, weight, whole, C - whole, sum);
  }
  for (int i = 0; i < kRows; ++i) {
    const Quad total = reduce_add_four(sum[i]);
    for (int64_t j = 0; j < count; ++j) {
      out[i * out_stride + j] = total[j] + bias[j];
    }
  }
}

// out[:, begin:end] <- x weight^T + bias, those columns
//   x: [rows, C]   weight: [size, C]   bias: [size]   out: [rows, size]
inline void head_columns(const float* x, int64_t rows, int64_t C, const float* weight,
                         const float* bias, int64_t begin, int64_t end, int64_t size, float* out) {
  for (int64_t column = begin; column < end; column += kHeadColumns) {
    const int64_t count = end - column < kHeadColumns ? end - column : kHeadColumns;
    const float* weights[kHeadColumns];
    for (int64_t j = 0; j < kHeadColumns; ++j) {  // the last one in place of those beyond the end
      weights[j] = weight + (column + (j < count ? j : count - 1)) * C;
    }
    int64_t row = 0;
    for (; row + kHeadRows <= rows; row += kHeadRows) {
      head_tile<kHeadRows>(x + row * C, C, weights, bias + column, count, out + row * size + column,
                           size);
    }
    for (; row < rows; ++row) {
      head_tile<1>(x + row * C, C, weights, bias + column, count, out + row * size + column, size);
    }
  }
}
