// The matrix product of the CPU kernels against double, where everything is exact but its sums.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernel_test.h"

// A product, and the place in the list of that which it is told comes next.
struct Factors {
  int64_t rows, columns, depth;
  size_t announced;
  std::vector<float> left, right;
};

#define PVT_KERNEL_BODY "test_gemm_impl.h"
#include "cpu/foreach_level.h"

namespace {

struct Shape {
  int64_t rows, columns, depth;
};

// About every number of tiles, whole and not, of every level, and every part of a block of a sum.
std::vector<Shape> shapes() {
  std::vector<Shape> shapes{{0, 64, 48}};
  std::mt19937 generator(0);
  const int64_t rows[] = {1, 2, 6, 7, 15, 16, 17, 24, 31, 32, 33, 48, 50, 65, 108};
  const int64_t columns[] = {1, 15, 16, 17, 32, 48, 49, 64, 65, 100, 128, 130};
  const int64_t depths[] = {1, 2, 7, 16, 31, 32, 33, 48, 64, 96, 147, 160, 256, 257, 320, 512, 603};
  for (const int64_t r : rows) {
    for (const int64_t c : columns) {
      shapes.push_back({r, c, depths[generator() % std::size(depths)]});
    }
  }
  for (const int64_t d : depths) {
    shapes.push_back({rows[generator() % std::size(rows)], 64, d});
  }
  return shapes;
}

// Numbers that every type has exactly: integers of 8 bits. Each block of 256 has the greatest, so
// that its scale is 1.
std::vector<float> left_values(int64_t rows, int64_t depth, std::mt19937& generator) {
  std::uniform_int_distribution<int> integers(-127, 127);
  std::vector<float> values(rows * depth);
  for (int64_t i = 0; i < rows * depth; ++i) {
    values[i] = i % depth % 256 == 0 ? 127.f : static_cast<float>(integers(generator));
  }
  return values;
}

std::vector<float> right_values(int64_t columns, int64_t depth, std::mt19937& generator) {
  std::uniform_int_distribution<int> integers(-127, 127);
  std::vector<float> values(columns * depth);
  for (float& value : values) {
    value = static_cast<float>(integers(generator));
  }
  return values;
}

template <class Products, class scalar_t>
void check_products(const Shape& s, unsigned seed) {
  CAPTURE(s.rows);
  CAPTURE(s.columns);
  CAPTURE(s.depth);
  std::mt19937 generator(seed);
  const std::vector<float> left = left_values(s.rows, s.depth, generator);
  const std::vector<float> right = right_values(s.columns, s.depth, generator);
  const int64_t width = (s.columns + Products::kWidth - 1) / Products::kWidth * Products::kWidth;
  const int64_t stride = width + 5;
  const std::vector<float> before =
      random_values<float>(std::max<int64_t>(s.rows * stride - 5, 0), seed);
  for (const bool accumulate : {false, true}) {
    std::vector<float> c = before;
    Products::template multiply<scalar_t>(left, right, s.rows, s.columns, s.depth, c, stride,
                                          accumulate);
    bool close = true, untouched = true;
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t j = 0; j < s.columns; ++j) {
        double sum = accumulate ? before[i * stride + j] : 0, size = std::abs(sum);
        for (int64_t k = 0; k < s.depth; ++k) {
          const double product = double{left[i * s.depth + k]} * right[j * s.depth + k];
          sum += product, size += std::abs(product);
        }
        // Of integers below 2^24 every sum is exact, but that with what was there.
        const double error = std::abs(c[i * stride + j] - sum);
        close = close && error <= (accumulate ? 1e-7 : 0) * size;
      }
      for (int64_t j = width; j < stride && i + 1 < s.rows; ++j) {
        untouched = untouched && c[i * stride + j] == before[i * stride + j];
      }
    }
    CHECK(close);
    CHECK(untouched);
  }
}

// A row's sums have the same bits alone and among others.
template <class Products, class scalar_t>
void check_bits(const Shape& s, unsigned seed) {
  CAPTURE(s.rows);
  CAPTURE(s.columns);
  CAPTURE(s.depth);
  const std::vector<float> left = random_values<float>(s.rows * s.depth, seed);
  std::vector<float> right = random_values<float>(s.columns * s.depth, seed + 1);
  if constexpr (std::is_same_v<scalar_t, int8_t>) {
    std::mt19937 generator(seed);
    right = right_values(s.columns, s.depth, generator);
  }
  const int64_t stride = (s.columns + Products::kWidth - 1) / Products::kWidth * Products::kWidth;
  std::vector<float> together(s.rows * stride);
  Products::template multiply<scalar_t>(left, right, s.rows, s.columns, s.depth, together, stride,
                                        false);
  for (int64_t i = 0; i < s.rows; i += 5) {
    const std::vector<float> row(left.begin() + i * s.depth, left.begin() + (i + 1) * s.depth);
    std::vector<float> alone(stride);
    Products::template multiply<scalar_t>(row, right, 1, s.columns, s.depth, alone, stride, false);
    CHECK(std::memcmp(alone.data(), together.data() + i * stride, s.columns * sizeof(float)) == 0);
  }
}

// Floats with all their bits, and of every size. In parts sums are closer than of multiply-adds.
template <class Products>
void check_rounding(const Shape& s, unsigned seed) {
  CAPTURE(s.rows);
  CAPTURE(s.columns);
  CAPTURE(s.depth);
  std::vector<float> left = random_values<float>(s.rows * s.depth, seed);
  const std::vector<float> right = random_values<float>(s.columns * s.depth, seed + 1);
  for (size_t i = 0; i < left.size(); ++i) {
    left[i] = std::ldexp(left[i], static_cast<int>(i % 41) - 20);
  }
  const int64_t stride = (s.columns + Products::kWidth - 1) / Products::kWidth * Products::kWidth;
  std::vector<float> c(s.rows * stride);
  Products::template multiply<pvt::PackedFloat>(left, right, s.rows, s.columns, s.depth, c, stride,
                                                false);
  double worst = 0;
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t j = 0; j < s.columns; ++j) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < s.depth; ++k) {
        const double product = double{left[i * s.depth + k]} * right[j * s.depth + k];
        sum += product, size += std::abs(product);
      }
      worst = std::max(worst, std::abs(c[i * stride + j] - sum) / size);
    }
  }
  CHECK(worst < (Products::kInParts ? 4e-7 : 1e-6));
}

// Products with a unit matrix on either side give every float back, whatever its bits; only what
// is too small for bfloat16 to be a part of it, or as large as none, is not among them.
template <class Products>
void check_identity() {
  constexpr int64_t kSize = 48;
  std::mt19937 generator(3);
  std::uniform_int_distribution<uint32_t> bits;
  std::uniform_int_distribution<int> exponents(-100, 126);
  std::vector<float> values(kSize * kSize), unit(kSize * kSize), transposed(kSize * kSize);
  for (int64_t i = 0; i < kSize * kSize; ++i) {
    const uint32_t pattern = (bits(generator) & 0x807fffffu) | 0x3f800000u;
    values[i] = std::ldexp(from_bits(pattern), exponents(generator));
    unit[i] = i / kSize == i % kSize ? 1.f : 0.f;
  }
  for (int64_t i = 0; i < kSize * kSize; ++i) {
    transposed[i % kSize * kSize + i / kSize] = values[i];
  }
  std::vector<float> left(kSize * kSize), right(kSize * kSize);
  Products::template multiply<pvt::PackedFloat>(values, unit, kSize, kSize, kSize, left, kSize,
                                                false);
  Products::template multiply<pvt::PackedFloat>(unit, transposed, kSize, kSize, kSize, right, kSize,
                                                false);
  CHECK(std::memcmp(left.data(), values.data(), kSize * kSize * sizeof(float)) == 0);
  CHECK(std::memcmp(right.data(), values.data(), kSize * kSize * sizeof(float)) == 0);
}

// A NaN or an infinity stays in its row or column, and is not lost.
template <class Products>
void check_bad_values() {
  constexpr int64_t kRows = 40, kColumns = 50, kDepth = 70, kStride = 64;
  for (const uint32_t bad : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7fffffffu, 0xffffffffu,
                             0x7f800000u, 0xff800000u}) {
    std::vector<float> left = random_values<float>(kRows * kDepth, 1);
    std::vector<float> right = random_values<float>(kColumns * kDepth, 2);
    left[7 * kDepth + 3] = right[33 * kDepth + 69] = from_bits(bad);
    std::vector<float> c(kRows * kStride);
    Products::template multiply<pvt::PackedFloat>(left, right, kRows, kColumns, kDepth, c, kStride,
                                                  false);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kColumns; ++j) {
        REQUIRE(std::isfinite(c[i * kStride + j]) == (i != 7 && j != 33));
      }
    }
  }
}

// Weights that are taken apart during the product before give the same bits, also if that was told
// of others than come.
template <class Products>
void check_announced() {
  std::vector<Factors> products{{37, 50, 70, 1, {}, {}},  {37, 16, 257, 2, {}, {}},
                                {20, 70, 600, 3, {}, {}}, {1, 100, 64, 0, {}, {}},
                                {50, 33, 33, 4, {}, {}},  {50, 50, 33, 9, {}, {}},
                                {50, 64, 33, 9, {}, {}}};
  unsigned seed = 0;
  for (Factors& f : products) {
    f.left = random_values<float>(f.rows * f.depth, ++seed);
    f.right = random_values<float>(f.columns * f.depth, ++seed);
  }
  const auto alone = Products::multiply_in_turn(products, /*keeps=*/false);
  CHECK(Products::multiply_in_turn(products, /*keeps=*/true) == alone);
}

template <class Products>
void check_packed_floats(const Shape& shape, unsigned seed) {
  check_products<Products, pvt::PackedFloat>(shape, seed);
  if (seed % 3 == 0) {
    check_rounding<Products>(shape, seed);
  }
  if (seed % 7 == 0) {
    check_bits<Products, pvt::PackedFloat>(shape, seed);
  }
}

template <class Packed, class PreparedColumns, class PreparedRows>
void check_level() {
  unsigned seed = 0;
  for (const Shape& shape : shapes()) {
    ++seed;
    check_products<Packed, float>(shape, seed);
    check_products<Packed, pvt::BFloat16>(shape, seed);
    check_products<Packed, pvt::Half>(shape, seed);
    check_products<Packed, int8_t>(shape, seed);
    check_packed_floats<Packed>(shape, seed);
    if (seed % 4 == 0) {  // the emulation of instructions takes its time
      check_packed_floats<PreparedColumns>(shape, seed);
      check_packed_floats<PreparedRows>(shape, seed);
      check_products<PreparedColumns, pvt::BFloat16>(shape, seed);
      check_products<PreparedRows, pvt::BFloat16>(shape, seed);
    }
    if (seed % 7 == 0) {
      check_bits<Packed, float>(shape, seed);
      check_bits<Packed, pvt::BFloat16>(shape, seed);
      check_bits<Packed, int8_t>(shape, seed);
    }
  }
  check_announced<Packed>();
  check_identity<Packed>();
  check_identity<PreparedColumns>();
  check_identity<PreparedRows>();
  check_bad_values<Packed>();
  check_bad_values<PreparedColumns>();
  check_bad_values<PreparedRows>();
}

}  // namespace

#define CHECK_PRODUCTS(level)                                            \
  check_level<pvt::level::Products<pvt::level::Right::kPacked>,          \
              pvt::level::Products<pvt::level::Right::kPreparedColumns>, \
              pvt::level::Products<pvt::level::Right::kPreparedRows>>();

PVT_TEST_EVERY_LEVEL("matrix product", CHECK_PRODUCTS)
