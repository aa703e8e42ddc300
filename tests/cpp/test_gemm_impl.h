// The matrix product on vectors of exactly the sizes it needs. Part of a kernel body
// (foreach_level.h).

#include "cpu/gemm.h"
#include "cpu/pack.h"

struct Products {
  // c = (accumulate ? c : 0) + left right^T, rows of c c_stride apart
  //   left: [rows, depth]   right: [columns, depth]; 8-bit weights are w + 128
  template <class scalar_t>
  static void multiply(const std::vector<float>& left, const std::vector<float>& right,
                       int64_t rows, int64_t columns, int64_t depth, std::vector<float>& c,
                       int64_t c_stride, bool accumulate) {
    using Op = Operand<scalar_t>;
    const int64_t gap = 3, stride = row_units<scalar_t>(depth) + gap;
    const int64_t units = right_units<scalar_t>(depth);
    std::vector<float> a(rows * stride - gap, NAN);  // NaN between rows
    for (int64_t i = 0; i < rows; ++i) {
      Op::to_left(left.data() + i * depth, depth, a.data() + i * stride);
    }
    std::vector<float> b(packed_size<scalar_t>(depth, columns));
    if constexpr (Op::kHeader > 0) {
      uint8_t* const bytes = reinterpret_cast<uint8_t*>(b.data());
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t k = 0; k < depth; ++k) {
          bytes[(panel_offset(j, units * kPanel) + k / 4 * kPanel) * 4 + k % 4] =
              static_cast<uint8_t>(right[j * depth + k] + 128);
        }
      }
    } else {
      std::vector<float> scratch(4 * units);
      pack_columns<scalar_t>(right.data(), columns, depth, depth, b.data(), scratch.data());
    }
    gemm<scalar_t>(rows, columns, units, a.data(), stride, b.data(), units * kPanel, c.data(),
                   c_stride, accumulate);
  }

  static constexpr int kWidth = kLanes;
};
