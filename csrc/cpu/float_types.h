// The 16-bit floating-point types under their short names.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace pvt {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

}  // namespace pvt
