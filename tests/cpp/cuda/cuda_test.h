// What the tests of the CUDA kernels share: 16-bit tensors, packed weights, errors.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "cuda/host_block.h"
#include "cuda/weight_blocks.h"

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

// Those numbers as scalar_t, on a 16-byte boundary as tensors are.
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
  struct alignas(16) Vector {
    uint16_t bits[8];
  };
  std::vector<Vector> vectors_;
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

// float32 on a 16-byte boundary.
class Floats {
 public:
  explicit Floats(const std::vector<double>& numbers) : vectors_((numbers.size() + 3) / 4) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      vectors_[i / 4].value[i % 4] = static_cast<float>(numbers[i]);
    }
  }
  const float* data() const { return vectors_.front().value; }
  float* data() { return vectors_.front().value; }

 private:
  struct alignas(16) Vector {
    float value[4];
  };
  std::vector<Vector> vectors_;
};

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

// Keys of a head and their values, each `stride` numbers after the one before.
struct HeadKeys {
  const double* keys;
  const double* values;
  int64_t stride, kv_len, head_dim;
};

// softmax(scale q keys^T) values for a query; weights are rounded as a tensor of them would be.
template <class Round>
std::vector<double> attend_to(const HeadKeys& head, const double* q, double scale,
                              const Round& round) {
  std::vector<double> weights(head.kv_len), result(head.head_dim);
  double most = -INFINITY, total = 0;
  for (int64_t key = 0; key < head.kv_len; ++key) {
    for (int64_t d = 0; d < head.head_dim; ++d)
      weights[key] += q[d] * head.keys[key * head.stride + d] * scale;
    most = std::max(most, weights[key]);
  }
  for (double& weight : weights)
    total += weight = std::exp(weight - most);
  for (double& weight : weights)
    weight /= total;
  weights = round(weights);
  for (int64_t key = 0; key < head.kv_len; ++key) {
    for (int64_t d = 0; d < head.head_dim; ++d)
      result[d] += weights[key] * head.values[key * head.stride + d];
  }
  return result;
}

inline double exact_gelu(double x) {
  return x / 2 * std::erfc(-x / std::sqrt(2.0));
}

// What a tensor's values become when they are written to memory: an operator made of several rounds
// between its parts.
template <class scalar_t>
struct Rounded {
  std::vector<double> operator()(std::vector<double> values) const {
    for (double& v : values)
      v = from_bits<scalar_t>(to_bits<scalar_t>(static_cast<float>(v)));
    return values;
  }
};
struct Exact {
  std::vector<double> operator()(std::vector<double> values) const { return values; }
};

// The error of a fused operator beside that of its parts, one after the other in scalar_t: root of
// the mean square, against float64.
class Errors {
 public:
  void add(double fused, double parts, double expected) {
    fused_ += (fused - expected) * (fused - expected);
    parts_ += (parts - expected) * (parts - expected);
  }
  // At most 1, and 0 if every result is exact; NaN if any result is.
  double ratio() const { return fused_ == 0 ? 0 : std::sqrt(fused_ / parts_); }

 private:
  double fused_ = 0, parts_ = 0;
};

constexpr double kMaxErrorRatio = 1.1;

// A packed weight [columns, depth] in blocks.
class Blocks {
 public:
  Blocks(const char* weight, int64_t columns, int64_t depth, Follow follow)
      : memory_(std::vector<double>(columns * depth, NAN)) {
    const WeightBlocksArgs args{weight, data(), static_cast<int>(columns), static_cast<int>(depth),
                                follow};
    for (int64_t index = 0; index < block_vectors(args); ++index)
      write_block_vector(args, index);
  }
  char* data() { return reinterpret_cast<char*>(memory_.data()); }

 private:
  Bits<BFloat16> memory_;
};

}  // namespace pvt::cuda
