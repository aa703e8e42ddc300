// One pass of Pillow's resampler along one axis, on weights of image/resample.h.
#pragma once

#include "cuda/device.h"
#include "image/resample.h"

namespace pvt::cuda {

// src [outer, positions, inner] -> dst [outer, out_size, inner]
struct ResamplePass {
  const uint8_t* src;  // inner ones are adjacent
  int64_t outer_stride, position_stride;
  const int32_t* table;  // [out_size, 2 + taps]: first position, how many, their weights
  int64_t outer, out_size, inner;
  int taps;
  uint8_t* dst;

  int64_t values() const { return outer * out_size * inner; }
};

// A thread computes a value, 0 .. values() - 1.
PVT_HOST_DEVICE void resample_value(const ResamplePass& pass, int64_t value) {
  const int64_t row = value / pass.inner, outer = row / pass.out_size;
  const int32_t* const entry = pass.table + (row - outer * pass.out_size) * (2 + pass.taps);
  const uint8_t* src = pass.src + outer * pass.outer_stride + entry[0] * pass.position_stride +
                       (value - row * pass.inner);
  int32_t sum = 1 << (kResampleBits - 1);
  for (int t = 0; t < entry[1]; ++t) {
    sum += src[t * pass.position_stride] * entry[2 + t];
  }
  sum >>= kResampleBits;
  pass.dst[value] = static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

}  // namespace pvt::cuda
