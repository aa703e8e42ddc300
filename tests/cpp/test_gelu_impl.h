// The functions of one vector, applied to arrays. Part of a kernel body (foreach_level.h).

#include "cpu/gelu.h"

inline void gelu_of(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(y + i, gelu(load(x + i)));
  }
}

inline void coarse_gelu_of(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(y + i, coarse_gelu(load(x + i)));
  }
}

inline void exp2_of(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(y + i, exp2_nonpositive(load(x + i)));
  }
}

inline void coarse_exp2_of(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(y + i, coarse_exp2_nonpositive(load(x + i)));
  }
}

inline void gelu_slope_of(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec slope;
    gelu_with_slope(load(x + i), slope);
    store(y + i, slope);
  }
}
