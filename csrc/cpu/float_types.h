// The 16-bit floating-point types under their short names, and which of them attention uses.
#pragma once

#include <cstdint>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace pvt {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What queries, keys, scores and values are multiplied in beside weights of scalar_t: 8-bit
// integers are too coarse for them.
template <class scalar_t>
using AttentionType = std::conditional_t<std::is_same_v<scalar_t, int8_t>, BFloat16, scalar_t>;

}  // namespace pvt
