// What the tests of the CUDA kernels share: 16-bit tensors, packed weights, errors.
#pragma once

#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "cuda/host_block.h"

namespace pvt::cuda {

// Random numbers that scalar_t holds exactly.
template <class scalar_t>
std::vector<double> random_numbers(int64_t count, unsigned seed, double size = 1, double mean = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(mean, size);
  std::vector<double> numbers(count);
  for (double& number : numbers) {
    number = from_bits<scalar_t>(to_bits<scalar_t>(static_cast<float>(normal(generator))));
  }
  return numbers;
}

// On 16-byte boundaries, as tensors are.
template <class scalar_t>
struct alignas(16) Vector16 {
  uint16_t bits[8];
};

template <class scalar_t>
class Bits {
 public:
  explicit Bits(const std::vector<double>& numbers) : vectors_((numbers.size() + 7) / 8) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      data()[i] = to_bits<scalar_t>(static_cast<float>(numbers[i]));
    }
  }
  uint16_t* data() { return vectors_.front().bits; }
  const char* bytes() const { return reinterpret_cast<const char*>(vectors_.front().bits); }
  double operator[](int64_t i) const { return from_bits<scalar_t>(vectors_[i / 8].bits[i % 8]); }

 private:
  std::vector<Vector16<scalar_t>> vectors_;
};

// weight [rows, columns] in panels (pvt_ext/packing.py): [rows / 16, columns / 2, 16, 2].
template <class scalar_t>
Bits<scalar_t> packed(const std::vector<double>& weight, int64_t rows, int64_t columns) {
  std::vector<double> panels(rows * columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      panels[((r / 16 * (columns / 2) + c / 2) * 16 + r % 16) * 2 + c % 2] =
          weight[r * columns + c];
    }
  }
  return Bits<scalar_t>(panels);
}

inline std::vector<float> floats(const std::vector<double>& numbers) {
  return std::vector<float>(numbers.begin(), numbers.end());
}

// ---- float64 references ----

// LayerNorm of one row.
inline std::vector<double> layer_norm(const double* x, int64_t C, const std::vector<double>& weight,
                                      const std::vector<double>& bias, double eps) {
  double mean = 0, variance = 0;
  for (int64_t c = 0; c < C; ++c)
    mean += x[c] / C;
  for (int64_t c = 0; c < C; ++c)
    variance += (x[c] - mean) * (x[c] - mean) / C;
  std::vector<double> result(C);
  for (int64_t c = 0; c < C; ++c) {
    result[c] = (x[c] - mean) / std::sqrt(variance + eps) * weight[c] + bias[c];
  }
  return result;
}

// weight [rows, columns] x + bias
inline std::vector<double> linear(const std::vector<double>& x, const std::vector<double>& weight,
                                  const std::vector<double>& bias) {
  std::vector<double> result = bias;
  for (size_t r = 0; r < bias.size(); ++r) {
    for (size_t c = 0; c < x.size(); ++c)
      result[r] += weight[r * x.size() + c] * x[c];
  }
  return result;
}

inline double exact_gelu(double x) {
  return x / 2 * std::erfc(-x / std::sqrt(2.0));
}

// Root of the mean square of the error, relative to that of what was added to x. NaN if any is.
class Error {
 public:
  void add(double result, double expected, double size) {
    error_ += (result - expected) * (result - expected);
    size_ += size * size;
  }
  double relative() const { return std::sqrt(error_ / size_); }

 private:
  double error_ = 0, size_ = 0;
};

// Bounds of it: four units in the last place of scalar_t, spread evenly, or so. A value in a wrong
// place gives a tenth or more.
template <class scalar_t>
constexpr double kBound = std::is_same_v<scalar_t, BFloat16> ? 8e-3 : 1e-3;

}  // namespace pvt::cuda
