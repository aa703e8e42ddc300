// What spatial_reduction and its gradient set out with. Included after their bodies.
#pragma once

#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace pvt {

// The weight [C, C, sr_ratio, sr_ratio], contiguous, in the panels of ReduceArgs: four output
// channels at a time, those that pad the last panel included.
template <class scalar_t>
Tensor packed_filters(const ReductionShape& s, const Tensor& weight) {
  const auto pack = PVT_BEST_LEVEL(pack_four_channels<scalar_t>);
  const scalar_t* weight_data = static_cast<const scalar_t*>(weight.const_data_ptr());
  Tensor packed = torch::stable::empty(
      {PVT_BEST_LEVEL(packed_weight_size<scalar_t>)(s.C, s.sr_ratio)}, ScalarType::Float);
  float* packed_data = static_cast<float*>(packed.mutable_data_ptr());
  const int64_t channels = PVT_BEST_LEVEL(num_panels)(s.C) * PVT_BEST_LEVEL(kPanel);
  parallel_for(channels / 4, 1, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(PVT_BEST_LEVEL(pack_scratch_size)(s.C, s.sr_ratio));
    for (int64_t group = begin; group < end; ++group) {
      pack(weight_data, s.C, s.sr_ratio, 4 * group, packed_data, scratch);
    }
  });
  return packed;
}

inline ReduceArgs reduce_args(const ReductionShape& s, const Tensor& x, const Tensor& packed,
                              const Vector& bias, const NormArgs& norm) {
  ReduceArgs args;
  args.W = s.W, args.C = s.C, args.sr_ratio = s.sr_ratio;
  args.out_H = s.out_H(), args.out_W = s.out_W();
  args.batch_stride = x.stride(0), args.token_stride = x.stride(1);
  args.weight = static_cast<const float*>(packed.const_data_ptr()), args.bias = bias.data();
  args.norm = norm;
  return args;
}

}  // namespace pvt
