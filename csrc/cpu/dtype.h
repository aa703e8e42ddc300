// From a tensor's dtype to a template argument of a CPU kernel.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>

#include "conversions.h"
#include "cpu/args.h"
#include "cpu/float_types.h"

namespace pvt {

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

// Inputs side by side in the panels that the kernels on packed weights read; 0: they read none.
inline int64_t packed_group(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return 1;
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Byte:
      return 4;
    default:
      return 0;
  }
}

// Whether the kernels on packed weights take these: float32 tokens, and weights of one dtype in
// panels that are laid out for it.
inline bool have_packed_kernel(const Tensor& x, std::initializer_list<Tensor> packed_weights) {
  if (x.scalar_type() != ScalarType::Float) {
    return false;
  }
  const ScalarType dtype = packed_weights.begin()->scalar_type();
  const int64_t group = packed_group(dtype);
  for (const Tensor& weight : packed_weights) {
    if (weight.scalar_type() != dtype || weight.size(3) != group) {
      return false;
    }
  }
  return true;
}

// Calls run(scalar_t{}) for a dtype of weights that have_packed_kernel().
template <class Run>
void dispatch_packed_dtype(ScalarType dtype, const Run& run) {
  switch (dtype) {
    case ScalarType::Float:
      return run(PackedFloat{});
    case ScalarType::BFloat16:
      return run(BFloat16{});
    case ScalarType::Byte:
      return run(int8_t{});
    default:
      check(false, "no kernel on packed weights for ", dtype_name(dtype));
  }
}

// A [C] parameter as contiguous float.
class Vector {
 public:
  explicit Vector(const Tensor& vector) : tensor_(contiguous_of(float_of(vector))) {}
  const float* data() const { return static_cast<const float*>(tensor_.const_data_ptr()); }

 private:
  Tensor tensor_;
};

// A layer of a packed weight, which is contiguous, and its bias.
inline LinearArgs linear_args(const Tensor& weight, const Vector& bias) {
  return {static_cast<const float*>(weight.const_data_ptr()), weight.size(1) * kPackedColumns,
          bias.data()};
}

}  // namespace pvt
