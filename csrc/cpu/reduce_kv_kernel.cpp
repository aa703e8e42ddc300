// reduce_kv on the CPU: the strided convolution, then LayerNorm, then the projection to keys and
// values. A token's sums are taken in one order whatever the threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/convolve.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/reduce_kv_impl.h"
#include "cpu/foreach_level.h"
#include "cpu/project_kv.h"

namespace pvt {
namespace {

// s.B images from image `first` on
template <class scalar_t>
void run(const ReductionShape& s, const PatchArgs& args, const LinearArgs& kv, const Tensor& x,
         int64_t first, Tensor& out) {
  const int64_t rows = s.B * s.kv_len();
  const int64_t depth = PVT_BEST_LEVEL(row_units<scalar_t>)(s.C);
  const float* x_data = static_cast<const float*>(x.const_data_ptr()) + first * x.stride(0);
  float* out_data = static_cast<float*>(out.mutable_data_ptr()) + first * s.kv_len() * 2 * s.C;
  float* tokens = thread_scratch<Scratch::kShared>(rows * depth);

  if (args.conv.weight == nullptr) {
    const auto normalise = PVT_BEST_LEVEL(layer_norm_to_units<scalar_t>);
    parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
      normalise(x_data + begin * s.C, s.C, end - begin, s.C, args.input_norm,
                tokens + begin * depth);
    });
  } else {
    const auto finish = PVT_BEST_LEVEL(finish_reduction<scalar_t>);
    convolve<scalar_t>(args, s.B, x_data, [&](int64_t row, int64_t count, float* sums) {
      finish(args, sums, count, tokens + row * depth);
    });
  }

  project_kv<scalar_t>(kv, tokens, rows, s.C, out_data);
}

}  // namespace

Tensor reduce_kv_cpu(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                     const Tensor& norm_bias, double eps, const std::optional<Tensor>& sr_weight,
                     const std::optional<Tensor>& sr_bias,
                     const std::optional<Tensor>& sr_norm_weight,
                     const std::optional<Tensor>& sr_norm_bias, double sr_eps,
                     const Tensor& kv_weight, const Tensor& kv_bias, int64_t sr_ratio) {
  const ReductionShape s =
      check_reduce_kv(x, H, W, norm_weight, norm_bias, sr_weight, sr_bias, sr_norm_weight,
                      sr_norm_bias, kv_weight, kv_bias, sr_ratio);
  const bool reduces = sr_weight.has_value();
  if (!have_packed_kernel(x, {kv_weight, sr_weight.value_or(kv_weight)})) {
    return reduce_kv_aten(x, H, W, norm_weight, norm_bias, eps, sr_weight, sr_bias, sr_norm_weight,
                          sr_norm_bias, sr_eps, kv_weight, kv_bias, sr_ratio);
  }
  Tensor out = torch::stable::empty({s.B, s.kv_len(), 2 * s.C}, x.scalar_type());
  if (s.B * s.kv_len() == 0) {
    return out;
  }
  const Tensor tokens = contiguous_of(x);
  const Tensor kv = contiguous_of(kv_weight);
  const Vector norm_w(norm_weight), norm_b(norm_bias), kv_b(kv_bias);
  PatchArgs args{};
  args.H = s.H, args.W = s.W, args.C_in = s.C;
  args.out_H = s.out_H(), args.out_W = s.out_W(), args.C_out = s.C;
  args.kernel_size = sr_ratio, args.stride = sr_ratio;
  args.batch_stride = tokens.stride(0), args.row_stride = s.W * s.C;
  args.column_stride = s.C, args.channel_stride = 1;
  args.input_norm = {norm_w.data(), norm_b.data(), static_cast<float>(eps)};
  const Tensor sr = reduces ? contiguous_of(*sr_weight) : kv;
  const Vector sr_b(sr_bias.value_or(kv_bias)), sr_norm_w(sr_norm_weight.value_or(norm_weight)),
      sr_norm_b(sr_norm_bias.value_or(norm_bias));
  if (reduces) {
    args.conv = linear_args(sr, sr_b);
    args.norm = {sr_norm_w.data(), sr_norm_b.data(), static_cast<float>(sr_eps)};
  }
  dispatch_packed_dtype(kv_weight.scalar_type(), [&](auto type) {
    const int64_t at_once = images_at_once(s.B, s.kv_len() * s.C);
    for (int64_t b = 0; b < s.B; b += at_once) {
      ReductionShape part = s;
      part.B = std::min(at_once, s.B - b);
      run<decltype(type)>(part, args, linear_args(kv, kv_b), tokens, b, out);
    }
  });
  return out;
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("reduce_kv", TORCH_BOX(&pvt::reduce_kv_cpu));
}
