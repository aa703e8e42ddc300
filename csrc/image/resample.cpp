#include "image/resample.h"

#include <algorithm>
#include <cmath>

namespace pvt {
namespace {

constexpr int32_t kHalf = 1 << (kResampleBits - 1);

uint8_t to_pixel(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kResampleBits, 0, 255));
}

double triangle(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

// Keys' cubic with a = -0.5.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) {
    return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  }
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

}  // namespace

ResampleWeights resample_weights(int64_t in_size, int64_t out_size, int64_t out_begin,
                                 int64_t out_end, Interpolation interpolation) {
  const bool bicubic = interpolation == Interpolation::kBicubic;
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  // Shrinking widens the filter so that every input pixel counts (antialiasing).
  const double filter_scale = std::max(scale, 1.0);
  const double support = (bicubic ? 2.0 : 1.0) * filter_scale;
  const auto first_of = [&](double center) {
    return std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
  };
  const auto center_of = [&](int64_t i) { return (static_cast<double>(i) + 0.5) * scale; };

  ResampleWeights axis;
  axis.begin = axis.end = first_of(center_of(out_begin));
  axis.taps = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  axis.weights.assign((out_end - out_begin) * axis.taps, 0);
  std::vector<double> row(axis.taps);
  for (int64_t i = out_begin; i < out_end; ++i) {
    const double center = center_of(i);
    const int64_t first = first_of(center);
    const int64_t last = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), in_size);
    const int64_t count = last - first;
    double sum = 0.0;
    for (int64_t t = 0; t < count; ++t) {
      const double x = (static_cast<double>(t + first) - center + 0.5) * (1.0 / filter_scale);
      row[t] = bicubic ? cubic(x) : triangle(x);
      sum += row[t];
    }
    int32_t* out = axis.weights.data() + (i - out_begin) * axis.taps;
    for (int64_t t = 0; t < count; ++t) {
      const double weight = (sum != 0.0 ? row[t] / sum : row[t]) * (1 << kResampleBits);
      out[t] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    axis.first.push_back(first - axis.begin);
    axis.count.push_back(count);
    axis.end = std::max(axis.end, last);
  }
  return axis;
}

bool vertical_pass_first(int64_t in_height, int64_t in_width, int64_t height, int64_t width) {
  const int64_t rows_lost = in_height - height, columns_lost = in_width - width;
  return rows_lost > 0 && rows_lost > 2 * columns_lost;
}

namespace {

template <int kChannels>
void resample_row_of(const uint8_t* src, const ResampleWeights& x, uint8_t* dst) {
  for (int64_t i = 0; i < x.out_size(); ++i) {
    const uint8_t* pixel = src + x.first[i] * kChannels;
    const int32_t* weights = x.weights.data() + i * x.taps;
    int32_t sum[kChannels];
    std::fill(sum, sum + kChannels, kHalf);
    for (int64_t t = 0; t < x.count[i]; ++t) {
      for (int c = 0; c < kChannels; ++c) {
        sum[c] += pixel[t * kChannels + c] * weights[t];
      }
    }
    for (int c = 0; c < kChannels; ++c) {
      dst[i * kChannels + c] = to_pixel(sum[c]);
    }
  }
}

}  // namespace

void resample_row(const uint8_t* src, int64_t channels, const ResampleWeights& x, uint8_t* dst) {
  switch (channels) {
    case 1:
      return resample_row_of<1>(src, x, dst);
    case 2:
      return resample_row_of<2>(src, x, dst);
    case 3:
      return resample_row_of<3>(src, x, dst);
    default:
      return resample_row_of<4>(src, x, dst);
  }
}

void resample_column(const uint8_t* src, int64_t row_stride, int64_t row_size,
                     const ResampleWeights& y, int64_t i, uint8_t* dst) {
  src += y.first[i] * row_stride;
  const int64_t count = y.count[i];
  const int32_t* weights = y.weights.data() + i * y.taps;
  // A block of columns at a time keeps the sums in registers while the rows stream past.
  constexpr int64_t kBlock = 64;
  int64_t begin = 0;
  for (; begin + kBlock <= row_size; begin += kBlock) {
    int32_t sum[kBlock];
    std::fill(sum, sum + kBlock, kHalf);
    for (int64_t t = 0; t < count; ++t) {
      const uint8_t* row = src + t * row_stride + begin;
      for (int64_t c = 0; c < kBlock; ++c) {
        sum[c] += row[c] * weights[t];
      }
    }
    for (int64_t c = 0; c < kBlock; ++c) {
      dst[begin + c] = to_pixel(sum[c]);
    }
  }
  for (; begin < row_size; ++begin) {
    int32_t sum = kHalf;
    for (int64_t t = 0; t < count; ++t) {
      sum += src[t * row_stride + begin] * weights[t];
    }
    dst[begin] = to_pixel(sum);
  }
}

}  // namespace pvt
