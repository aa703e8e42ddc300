// From a tensor's dtype to a template argument of a CPU kernel.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "checks.h"

namespace pvt {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Calls run(scalar_t{}) for the three dtypes that have a CPU kernel.
template <class Run>
void dispatch_dtype(const char* op, ScalarType dtype, const Run& run) {
  switch (dtype) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::BFloat16:
      return run(BFloat16{});
    case ScalarType::Half:
      return run(Half{});
    default:
      check(false, op, ": expected dtype float32, bfloat16 or float16, got ", dtype_name(dtype));
  }
}

// The tensor itself if elements of the last dimension are adjacent, else a contiguous copy.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const bool dense = tensor.size(-1) == 1 || tensor.stride(-1) == 1;
  return dense ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace pvt
