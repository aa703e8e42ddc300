// The CUDA kernel of resize against the CPU's, value for value.
#include "cuda/resample_impl.h"

#include <random>

#include <doctest/doctest.h>

namespace pvt::cuda {
namespace {

std::vector<uint8_t> random_bytes(int64_t count) {
  std::mt19937 generator(1);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes)
    byte = static_cast<uint8_t>(generator());
  return bytes;
}

std::vector<int32_t> table_of(const ResampleWeights& axis) {
  std::vector<int32_t> table;
  for (int64_t i = 0; i < axis.out_size(); ++i) {
    table.push_back(static_cast<int32_t>(axis.first[i]));
    table.push_back(static_cast<int32_t>(axis.count[i]));
    for (int64_t t = 0; t < axis.taps; ++t)
      table.push_back(axis.weights[i * axis.taps + t]);
  }
  return table;
}

std::vector<uint8_t> run(const uint8_t* src, int64_t outer_stride, int64_t position_stride,
                         int64_t outer, int64_t inner, const ResampleWeights& axis) {
  const std::vector<int32_t> table = table_of(axis);
  std::vector<uint8_t> dst(outer * axis.out_size() * inner);
  const ResamplePass pass{src,       outer_stride,    position_stride, table.data(),
                          outer,     axis.out_size(), inner,           static_cast<int>(axis.taps),
                          dst.data()};
  for (int64_t value = 0; value < pass.values(); ++value)
    resample_value(pass, value);
  return dst;
}

}  // namespace

TEST_CASE("resize: both passes, shrinking and growing, whole and cropped") {
  constexpr int64_t kRows = 7;
  for (const Interpolation method : {Interpolation::kBicubic, Interpolation::kBilinear}) {
    for (const int64_t channels : {1, 3, 4}) {
      for (const auto& [in_size, out_size] : {std::pair{37, 11}, {11, 37}, {300, 20}, {20, 20}}) {
        for (const int64_t begin : {0, 5}) {
          CAPTURE(channels);
          CAPTURE(in_size);
          const ResampleWeights axis =
              resample_weights(in_size, out_size, begin, out_size - begin / 2, method);
          // Rows of positions, of which the axis reads a part.
          const int64_t row_size = in_size * channels, out_row = axis.out_size() * channels;
          const std::vector<uint8_t> image = random_bytes(kRows * row_size);
          const uint8_t* first = image.data() + axis.begin * channels;
          std::vector<uint8_t> expected(kRows * out_row);
          for (int64_t row = 0; row < kRows; ++row)
            resample_row(first + row * row_size, channels, axis, &expected[row * out_row]);
          CHECK(run(first, row_size, channels, kRows, channels, axis) == expected);
          // Columns of positions.
          const int64_t width = kRows * channels;
          const std::vector<uint8_t> tall = random_bytes(in_size * width);
          first = tall.data() + axis.begin * width;
          expected.resize(axis.out_size() * width);
          for (int64_t i = 0; i < axis.out_size(); ++i)
            resample_column(first, width, width, axis, i, &expected[i * width]);
          CHECK(run(first, 0, width, 1, width, axis) == expected);
        }
      }
    }
  }
}

}  // namespace pvt::cuda
