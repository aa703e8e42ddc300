// The floating-point types of kernels, and which of them attention uses.
#pragma once

#include <cstdint>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace pvt {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// float32 where weights are packed, multiplied as suits the CPU level (operand_split.h).
struct PackedFloat {
  PackedFloat() = default;
  explicit PackedFloat(float x) : value(x) {}
  operator float() const { return value; }

  float value;
};

// What queries, keys, scores and values are multiplied in beside weights of scalar_t: 8-bit
// integers are too coarse for them.
template <class scalar_t>
using AttentionType = std::conditional_t<std::is_same_v<scalar_t, int8_t>, BFloat16, scalar_t>;

}  // namespace pvt
