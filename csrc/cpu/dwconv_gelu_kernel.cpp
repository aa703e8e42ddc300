// dwconv_gelu and its gradient on the CPU. Parallel over (image, tile of channels). Sums for the
// weights are taken image by image and then added in order, so the result does not depend on the
// number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/arithmetic.h"
#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/dwconv_gelu_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
namespace {

// A filter [C, 1, 3, 3] as taps [9, C].
Tensor taps_of(const Tensor& weight) {
  const Tensor flat = torch::stable::reshape(weight, {weight.size(0), 9});
  return torch::stable::contiguous(
      torch::stable::to(torch::stable::transpose(flat, 0, 1), ScalarType::Float));
}

DepthwiseArgs depthwise_args(const DepthwiseShape& s, const Tensor& taps, const Vector& bias,
                             bool relu) {
  return {s.H, s.W, s.C, relu, static_cast<const float*>(taps.const_data_ptr()), bias.data()};
}

// run(image, first channel, channels) for all tiles.
template <class Run>
void foreach_tile(const DepthwiseShape& s, const Run& run) {
  const int64_t width = PVT_BEST_LEVEL(kTileColumns), tiles = (s.C + width - 1) / width;
  parallel_tasks(s.B * tiles, [&](int64_t task) {
    const int64_t begin = task % tiles * width;
    run(task / tiles, begin, std::min(width, s.C - begin));
  });
}

template <class scalar_t>
void run_forward(const DepthwiseShape& s, const DepthwiseArgs& args, const Tensor& x, Tensor& out) {
  const auto convolve = PVT_BEST_LEVEL(dwconv_gelu_tile<scalar_t>);
  const int64_t scratch = PVT_BEST_LEVEL(dwconv_scratch_size)(s.H, s.W);
  const scalar_t* x_data = static_cast<const scalar_t*>(x.const_data_ptr());
  scalar_t* out_data = static_cast<scalar_t*>(out.mutable_data_ptr());
  foreach_tile(s, [&](int64_t b, int64_t begin, int64_t columns) {
    convolve(args, x_data + b * x.stride(0), x.stride(1), begin, columns,
             out_data + b * s.H * s.W * s.C, thread_scratch(scratch));
  });
}

// d_weights: [B, 10, C], for every image
template <class scalar_t>
void run_backward(const DepthwiseShape& s, const DepthwiseArgs& args, const Tensor& grad,
                  const Tensor& x, Tensor* d_x, float* d_weights) {
  const auto backward = PVT_BEST_LEVEL(dwconv_gelu_backward_tile<scalar_t>);
  const int64_t scratch = PVT_BEST_LEVEL(dwconv_backward_scratch_size)(s.H, s.W);
  const scalar_t* x_data = static_cast<const scalar_t*>(x.const_data_ptr());
  const scalar_t* grad_data = static_cast<const scalar_t*>(grad.const_data_ptr());
  scalar_t* d_x_data = d_x != nullptr ? static_cast<scalar_t*>(d_x->mutable_data_ptr()) : nullptr;
  foreach_tile(s, [&](int64_t b, int64_t begin, int64_t columns) {
    backward(
        args, x_data + b * x.stride(0), x.stride(1), grad_data + b * grad.stride(0), grad.stride(1),
        begin, columns, d_x_data != nullptr ? d_x_data + b * s.H * s.W * s.C : nullptr,
        d_weights != nullptr ? d_weights + b * 10 * s.C : nullptr, s.C, thread_scratch(scratch));
  });
}

}  // namespace

Tensor dwconv_gelu_cpu(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                       const Tensor& bias, bool relu) {
  const DepthwiseShape s = check_dwconv_gelu(x, H, W, weight, bias);
  if (x.scalar_type() == ScalarType::Double) {
    return dwconv_gelu_aten(x, H, W, weight, bias, relu);
  }
  Tensor out = torch::stable::empty({s.B, H * W, s.C}, x.scalar_type());
  const Tensor rows = with_dense_rows(x), taps = taps_of(weight);
  const Vector bias_vector(bias);
  const DepthwiseArgs args = depthwise_args(s, taps, bias_vector, relu);
  dispatch_dtype("dwconv_gelu", x.scalar_type(),
                 [&](auto type) { run_forward<decltype(type)>(s, args, rows, out); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> dwconv_gelu_backward_cpu(const Tensor& grad, const Tensor& x,
                                                            int64_t H, int64_t W,
                                                            const Tensor& weight,
                                                            const Tensor& bias, bool relu,
                                                            bool need_x, bool need_weights) {
  const DepthwiseShape s = check_dwconv_gelu_backward(grad, x, H, W, weight, bias);
  const ScalarType dtype = x.scalar_type();
  if (dtype == ScalarType::Double || s.B == 0) {
    return dwconv_gelu_backward_aten(grad, x, H, W, weight, bias, relu, need_x, need_weights);
  }
  Tensor d_x = no_grad_like(x), d_weight = no_grad_like(x), d_bias = no_grad_like(x);
  if (need_x) {
    d_x = torch::stable::empty({s.B, H * W, s.C}, dtype);
  }
  Tensor sums = torch::stable::empty({need_weights ? s.B : 0, 10, s.C}, ScalarType::Float);
  float* sums_data = static_cast<float*>(sums.mutable_data_ptr());
  const Tensor rows = with_dense_rows(x), grad_rows = with_dense_rows(grad);
  const Tensor taps = taps_of(weight);
  const Vector bias_vector(bias);
  const DepthwiseArgs args = depthwise_args(s, taps, bias_vector, relu);
  dispatch_dtype("dwconv_gelu_backward", dtype, [&](auto type) {
    run_backward<decltype(type)>(s, args, grad_rows, rows, need_x ? &d_x : nullptr,
                                 need_weights ? sums_data : nullptr);
  });
  if (need_weights) {
    Tensor total = torch::stable::empty({10, s.C}, ScalarType::Float);
    PVT_BEST_LEVEL(add_images)
    (sums_data, s.B, 10 * s.C, 10 * s.C, static_cast<float*>(total.mutable_data_ptr()));
    Tensor d_taps = torch::stable::narrow(total, 0, 0, 9);
    d_weight = torch::stable::to(torch::stable::contiguous(torch::stable::reshape(
                                     torch::stable::transpose(d_taps, 0, 1), {s.C, 1, 3, 3})),
                                 dtype);
    d_bias = torch::stable::to(torch::stable::clone(torch::stable::select(total, 0, 9)), dtype);
  }
  return {d_x, d_weight, d_bias};
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("dwconv_gelu", TORCH_BOX(&pvt::dwconv_gelu_cpu));
  m.impl("dwconv_gelu_backward", TORCH_BOX(&pvt::dwconv_gelu_backward_cpu));
}
