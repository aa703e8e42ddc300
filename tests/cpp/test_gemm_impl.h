// The matrix product on vectors of exactly the sizes it needs. Part of a kernel body
// (foreach_level.h).

#include "cpu/gemm.h"
#include "cpu/pack.h"

// Which of the products, and of the ways to make its right-hand side.
enum class Right { kPacked, kPreparedColumns, kPreparedRows };

template <Right kRight>
struct Products {
  // c = (accumulate ? c : 0) + left right^T, rows of c c_stride apart
  //   left: [rows, depth]   right: [columns, depth]; 8-bit weights are w + 128
  template <class scalar_t>
  static void multiply(const std::vector<float>& left, const std::vector<float>& right,
                       int64_t rows, int64_t columns, int64_t depth, std::vector<float>& c,
                       int64_t c_stride, bool accumulate) {
    const int64_t gap = 3, stride = row_units<scalar_t>(depth) + gap;
    std::vector<float> a(std::max<int64_t>(rows * stride - gap, 0), NAN);  // NaN between rows
    for (int64_t i = 0; i < rows; ++i) {
      Operand<scalar_t>::to_left(left.data() + i * depth, depth, a.data() + i * stride);
    }
    if constexpr (kRight == Right::kPacked) {
      const int64_t units = right_units<scalar_t>(depth);
      const std::vector<float> b = pack<scalar_t>(right, columns, depth);
      gemm<scalar_t>(rows, columns, units, a.data(), stride, b.data(), units * kPanel, c.data(),
                     c_stride, accumulate);
    } else {
      const int64_t units = prepared_depth<scalar_t>(depth);
      const std::vector<float> b = prepare<scalar_t>(right, columns, depth);
      gemm_prepared<scalar_t>(rows, columns, units, a.data(), stride, b.data(), units, c.data(),
                              c_stride, accumulate);
    }
  }

  // One product after the other. keeps: what a product is told comes next is taken apart for that
  static std::vector<std::vector<float>> multiply_in_turn(const std::vector<Factors>& products,
                                                          bool keeps) {
    SplitBlocks blocks{kBlockInputs<PackedFloat>};
    std::vector<std::vector<float>> right, results;
    for (const Factors& f : products) {
      right.push_back(pack<PackedFloat>(f.right, f.columns, f.depth));
    }
    for (size_t i = 0; i < products.size(); ++i) {
      const Factors& f = products[i];
      const int64_t stride = row_units<PackedFloat>(f.depth), width = round_up(f.columns, kPanel);
      std::vector<float> left(f.rows * stride), c(f.rows * width);
      for (int64_t row = 0; row < f.rows; ++row) {
        Operand<PackedFloat>::to_left(f.left.data() + row * f.depth, f.depth,
                                      left.data() + row * stride);
      }
      NextPanels next;
      if (f.announced < products.size()) {
        const Factors& other = products[f.announced];
        next = {right[f.announced].data(), other.depth * kPanel,
                std::min<int64_t>(other.columns, kTileColumns),
                std::min(other.depth, kBlockInputs<PackedFloat>)};
      }
      gemm<PackedFloat>(f.rows, f.columns, f.depth, left.data(), stride, right[i].data(),
                        f.depth * kPanel, c.data(), width, /*accumulate=*/false, next,
                        keeps ? &blocks : nullptr);
      results.push_back(c);
    }
    return results;
  }

  // As the model file has them.
  template <class scalar_t>
  static std::vector<float> pack(const std::vector<float>& right, int64_t columns, int64_t depth) {
    using Type = std::conditional_t<std::is_same_v<scalar_t, PackedFloat>, float, scalar_t>;
    const int64_t units = right_units<scalar_t>(depth);
    std::vector<float> b(round_up(columns, kPanel) * units);
    if constexpr (Operand<scalar_t>::kHeader > 0) {
      uint8_t* const bytes = reinterpret_cast<uint8_t*>(b.data());
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t k = 0; k < depth; ++k) {
          bytes[(panel_offset(j, units * kPanel) + k / 4 * kPanel) * 4 + k % 4] =
              static_cast<uint8_t>(right[j * depth + k] + 128);
        }
      }
    } else {
      std::vector<float> scratch(4 * units);
      pack_columns<Type>(right.data(), columns, depth, depth, b.data(), scratch.data());
    }
    return b;
  }

  // Whatever of it is read before it is written spoils the result.
  template <class scalar_t>
  static std::vector<float> prepare(const std::vector<float>& right, int64_t columns,
                                    int64_t depth) {
    std::vector<float> b(prepared_size<scalar_t>(depth, columns), NAN);
    if constexpr (kRight == Right::kPreparedColumns) {
      std::vector<float> scratch(prepare_scratch_size<scalar_t>(depth), NAN);
      prepare_columns<scalar_t>(right.data(), columns, depth, depth, b.data(), scratch.data());
      return b;
    }
    std::vector<float> rows(depth * columns);
    for (int64_t i = 0; i < depth * columns; ++i) {
      rows[i % depth * columns + i / depth] = right[i];
    }
    for (int64_t j = 0; j < columns; j += kPanel) {
      prepare_panel<scalar_t>(
          rows.data() + j, columns, depth, std::min<int64_t>(kPanel, columns - j), depth,
          b.data() + prepared_offset<scalar_t>(j, 0, prepared_depth<scalar_t>(depth)));
    }
    return b;
  }

  static constexpr int kWidth = kLanes;
  static constexpr bool kInParts = kSplits<PackedFloat>;
};
