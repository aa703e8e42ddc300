// spatial_reduction on the CPU. Parallel over output tokens: every one is computed by one thread
// in one order, so the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/spatial_reduction_impl.h"
#include "cpu/foreach_level.h"
#include "cpu/spatial_reduction_args.h"

namespace pvt {
namespace {

template <class scalar_t>
void run(const ReductionShape& s, const Tensor& x, const Tensor& weight, const Vector& bias,
         const Vector& norm_weight, const Vector& norm_bias, double eps, Tensor& out) {
  const Tensor packed = packed_filters<scalar_t>(s, weight);
  const ReduceArgs args = reduce_args(
      s, x, packed, bias, {norm_weight.data(), norm_bias.data(), static_cast<float>(eps)});
  const auto reduce = PVT_BEST_LEVEL(reduce_rows<scalar_t>);
  const int64_t scratch_size = PVT_BEST_LEVEL(reduce_scratch_size)(s.C);
  const scalar_t* x_data = static_cast<const scalar_t*>(x.const_data_ptr());
  scalar_t* out_data = static_cast<scalar_t*>(out.mutable_data_ptr());
  constexpr int64_t kGrain = 6;  // rows: one register tile
  parallel_for(s.B * s.kv_len(), kGrain, [&](int64_t begin, int64_t end) {
    reduce(args, x_data, begin, end, out_data, thread_scratch(scratch_size));
  });
}

}  // namespace

Tensor spatial_reduction_cpu(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                             const Tensor& bias, const Tensor& norm_weight, const Tensor& norm_bias,
                             int64_t sr_ratio, double eps) {
  const ReductionShape s =
      check_spatial_reduction(x, H, W, weight, bias, norm_weight, norm_bias, sr_ratio);
  if (x.scalar_type() == ScalarType::Double) {
    return spatial_reduction_aten(x, H, W, weight, bias, norm_weight, norm_bias, sr_ratio, eps);
  }
  Tensor out = torch::stable::empty({s.B, s.kv_len(), s.C}, x.scalar_type());
  if (s.B > 0) {
    const Tensor x_rows = with_dense_rows(x), dense_weight = torch::stable::contiguous(weight);
    dispatch_dtype("spatial_reduction", x.scalar_type(), [&](auto type) {
      run<decltype(type)>(s, x_rows, dense_weight, Vector(bias), Vector(norm_weight),
                          Vector(norm_bias), eps, out);
    });
  }
  return out;
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("spatial_reduction", TORCH_BOX(&pvt::spatial_reduction_cpu));
}
