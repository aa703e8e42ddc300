// Which tensors the kernels on packed weights take; ATen takes the others.
#pragma once

#include "conversions.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace pvt::cuda {

// On a 16-byte boundary, which the widest loads need. Tensors are, unless they are part of another.
inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kVector == 0;
}

// Whether every row of a tensor of 16-bit numbers [B, N, C] can be read 16 bytes at a time.
inline bool has_vector_rows(const Tensor& tensor) {
  constexpr int64_t kNumbers = kVector / 2;
  return is_aligned(tensor) && tensor.stride(2) == 1 && tensor.stride(1) % kNumbers == 0 &&
         tensor.stride(0) % kNumbers == 0 && tensor.size(2) % kNumbers == 0;
}

// Contiguous and aligned; a copy if need be.
inline Tensor dense(const Tensor& tensor) {
  const Tensor rows = contiguous_of(tensor);
  return is_aligned(rows) ? rows : torch::stable::clone(rows);
}

// A tensor [B, N, C] as it lies, where its rows can be read 16 bytes at a time; else a copy.
inline Tensor vector_rows(const Tensor& tensor) {
  return has_vector_rows(tensor) ? tensor : dense(tensor);
}

// A parameter as contiguous float32.
class Vector {
 public:
  explicit Vector(const Tensor& vector) : tensor_(dense(float_of(vector))) {}
  const float* data() const { return static_cast<const float*>(tensor_.const_data_ptr()); }

 private:
  Tensor tensor_;
};

// A packed weight.
class Weight {
 public:
  explicit Weight(const Tensor& weight) : tensor_(dense(weight)) {}
  const char* data() const { return static_cast<const char*>(tensor_.const_data_ptr()); }

 private:
  Tensor tensor_;
};

inline bool is_16_bit(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// Tokens and weights of one 16-bit type, the weights in panels of pairs.
inline bool have_packed_kernel(const Device& device, const Tensor& x,
                               std::initializer_list<Tensor> packed_weights) {
  if (!is_16_bit(x.scalar_type()) || !device.can_run_kernels()) {
    return false;
  }
  for (const Tensor& weight : packed_weights) {
    if (weight.scalar_type() != x.scalar_type() || weight.size(3) != 2) {
      return false;
    }
  }
  return true;
}

// Calls run(scalar_t{}) for a 16-bit dtype.
template <class Run>
void dispatch_16_bit(ScalarType dtype, const Run& run) {
  return dtype == ScalarType::BFloat16 ? run(BFloat16{}) : run(Half{});
}

}  // namespace pvt::cuda
