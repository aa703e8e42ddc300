// What the body of spatial_reduction takes at every CPU level.
#pragma once

#include <cstdint>

namespace pvt {

struct ReduceArgs {
  int64_t W, C, sr_ratio, out_H, out_W;
  int64_t batch_stride, token_stride;  // of x, in elements
  const float* weight;                 // packed, see pack_four_channels
  const float* bias;                   // these three: [C]
  const float* norm_weight;
  const float* norm_bias;
  float eps;
};

}  // namespace pvt
