// The resampler without torch; that it equals Pillow is tested from Python.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "image/resample.h"

TEST_CASE("the weights of every position add up to one") {
  for (const auto interpolation : {pvt::Interpolation::kBilinear, pvt::Interpolation::kBicubic}) {
    const std::pair<int64_t, int64_t> sizes[] = {{1, 1}, {1, 9}, {9, 1}, {500, 224}, {37, 224}};
    for (const auto& size : sizes) {
      const int64_t in = size.first, out = size.second;
      const auto axis = pvt::resample_weights(in, out, 0, out, interpolation);
      REQUIRE(axis.first.size() == static_cast<size_t>(out));
      for (int64_t i = 0; i < out; ++i) {
        INFO(in, " -> ", out, " at ", i);
        CHECK(axis.first[i] >= 0);
        CHECK(axis.count[i] >= 1);
        CHECK(axis.begin + axis.first[i] + axis.count[i] <= in);
        const auto* row = axis.weights.data() + i * axis.taps;
        const int64_t sum = std::accumulate(row, row + axis.count[i], int64_t{0});
        CHECK(std::abs(sum - (1 << 22)) <= axis.count[i]);
      }
    }
  }
}

TEST_CASE("a window has the weights of the whole axis") {
  const auto whole = pvt::resample_weights(500, 256, 0, 256, pvt::Interpolation::kBicubic);
  const auto window = pvt::resample_weights(500, 256, 16, 240, pvt::Interpolation::kBicubic);
  REQUIRE(window.first.size() == 224);
  REQUIRE(window.taps == whole.taps);
  for (size_t i = 0; i < window.first.size(); ++i) {
    CHECK(window.begin + window.first[i] == whole.begin + whole.first[i + 16]);
  }
  CHECK(std::equal(window.weights.begin(), window.weights.end(),
                   whole.weights.begin() + 16 * whole.taps));
}

TEST_CASE("a constant row stays constant, for every number of channels") {
  for (int64_t channels = 1; channels <= 4; ++channels) {
    const std::vector<uint8_t> row(static_cast<size_t>(100 * channels), 77);
    const auto axis = pvt::resample_weights(100, 33, 0, 33, pvt::Interpolation::kBicubic);
    std::vector<uint8_t> out(static_cast<size_t>(33 * channels));
    pvt::resample_row(row.data(), channels, axis, out.data());
    CHECK(out == std::vector<uint8_t>(out.size(), 77));
  }
}

TEST_CASE("as many pixels out as in changes nothing") {
  std::vector<uint8_t> row(51);
  std::iota(row.begin(), row.end(), uint8_t{100});
  const auto axis = pvt::resample_weights(17, 17, 0, 17, pvt::Interpolation::kBicubic);
  std::vector<uint8_t> out(51);
  pvt::resample_row(row.data(), 3, axis, out.data());
  CHECK(out == row);
}
