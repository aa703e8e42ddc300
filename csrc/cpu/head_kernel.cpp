// head on the CPU. Parallel over columns; a score's sum is taken in one order whatever the threads
// and the batch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"

#define PVT_KERNEL_BODY "cpu/head_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {

Tensor head_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const HeadShape s = check_head(x, weight, bias);
  if (x.scalar_type() != ScalarType::Float) {
    return head_aten(x, weight, bias);
  }
  Tensor out = torch::stable::empty({s.B, s.num_classes}, x.scalar_type());
  const Tensor rows = contiguous_of(x), weights = contiguous_of(weight);
  const Vector biases(bias);
  const float* x_data = static_cast<const float*>(rows.const_data_ptr());
  const float* weight_data = static_cast<const float*>(weights.const_data_ptr());
  float* out_data = static_cast<float*>(out.mutable_data_ptr());
  const auto columns = PVT_BEST_LEVEL(head_columns);
  constexpr int64_t kWidth = 32;  // of a task
  parallel_tasks((s.num_classes + kWidth - 1) / kWidth, [&](int64_t task) {
    const int64_t begin = task * kWidth;
    columns(x_data, s.B, s.C, weight_data, biases.data(), begin,
            std::min(begin + kWidth, s.num_classes), s.num_classes, out_data);
  });
  return out;
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("head", TORCH_BOX(&pvt::head_cpu));
}
