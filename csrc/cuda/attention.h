// What both attention operators are given, as their kernels take it.
#pragma once

#include "cuda/keys.h"
#include "cuda/packed.h"

namespace pvt::cuda {

// Whether scores of -inf, those of keys that do not exist, can be scaled by this, as a float.
inline bool is_usual_scale(double scale) {
  return 1e-30 < scale && scale < 1e30;
}

// For an exponential whose base is two.
inline float log2_scale(double scale) {
  constexpr double kLog2E = 1.4426950408889634;
  return static_cast<float>(scale * kLog2E);
}

// Of vector_rows(kv), which has to live as long.
inline KeyValues key_values(const Tensor& kv) {
  // The stride of a single key may be anything, and keys beyond it are never read.
  const int64_t key_bytes = kv.size(1) > 1 ? kv.stride(1) * 2 : 0;
  return {static_cast<const char*>(kv.const_data_ptr()), kv.stride(0) * 2, key_bytes, kv.size(2),
          static_cast<int>(kv.size(1))};
}

}  // namespace pvt::cuda
