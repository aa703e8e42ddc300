// Tensors as kernels need them. What is so already is not passed to PyTorch, whose operators take
// about a microsecond a call even for nothing: as long as a kernel of a small batch.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "checks.h"

namespace pvt {

inline Tensor contiguous_of(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor float_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float ? tensor
                                                   : torch::stable::to(tensor, ScalarType::Float);
}

}  // namespace pvt
