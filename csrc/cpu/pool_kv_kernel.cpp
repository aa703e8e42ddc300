// pool_kv on the CPU: the mean over every cell's window, then a 1 x 1 convolution, LayerNorm and
// GELU, then the projection to keys and values.
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

#define PVT_KERNEL_BODY "cpu/pool_kv_impl.h"
#include "cpu/foreach_level.h"
#include "cpu/project_kv.h"

namespace pvt {
namespace {

// x: [images, H, W, C]   out: [images, pool_size^2, 2 * C]
template <class scalar_t>
void run(const PoolArgs& pool, const PatchArgs& conv, const LinearArgs& kv, int64_t images,
         const float* x, float* out) {
  const int64_t C = pool.C, P = pool.pool_size, rows = images * P * P;
  const int64_t depth = PVT_BEST_LEVEL(row_units<scalar_t>)(C);
  float* tokens = thread_scratch<Scratch::kShared>(rows * (depth + C));
  float* cells = tokens + rows * depth;  // [rows, C]

  const auto pool_cell = PVT_BEST_LEVEL(pool_cell);
  const int64_t scratch = PVT_BEST_LEVEL(pool_scratch_size)(pool);
  parallel_tasks(rows, [&](int64_t row) {
    const int64_t image = row / (P * P), cell = row % (P * P);
    pool_cell(pool, x + image * pool.H * pool.W * C, cell / P, cell % P, cells + row * C,
              thread_scratch(scratch));
  });
  const auto finish = PVT_BEST_LEVEL(finish_pooling<scalar_t>);
  convolve<scalar_t>(conv, images, cells, [&](int64_t row, int64_t count, float* sums) {
    finish(conv, sums, count, tokens + row * depth);
  });
  project_kv<scalar_t>(kv, tokens, rows, C, out);
}

}  // namespace

Tensor pool_kv_cpu(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                   const Tensor& norm_bias, double eps, int64_t pool_size, const Tensor& sr_weight,
                   const Tensor& sr_bias, const Tensor& sr_norm_weight, const Tensor& sr_norm_bias,
                   double sr_eps, const Tensor& kv_weight, const Tensor& kv_bias) {
  const PoolShape s = check_pool_kv(x, H, W, norm_weight, norm_bias, pool_size, sr_weight, sr_bias,
                                    sr_norm_weight, sr_norm_bias, kv_weight, kv_bias);
  if (!have_packed_kernel(x, {kv_weight, sr_weight})) {
    return pool_kv_aten(x, H, W, norm_weight, norm_bias, eps, pool_size, sr_weight, sr_bias,
                        sr_norm_weight, sr_norm_bias, sr_eps, kv_weight, kv_bias);
  }
  Tensor out = torch::stable::empty({s.B, pool_size * pool_size, 2 * s.C}, x.scalar_type());
  if (s.B == 0) {
    return out;
  }
  const Tensor tokens = contiguous_of(x);
  const Tensor sr = contiguous_of(sr_weight);
  const Tensor kv = contiguous_of(kv_weight);
  const Vector norm_w(norm_weight), norm_b(norm_bias), sr_b(sr_bias), kv_b(kv_bias);
  const Vector sr_norm_w(sr_norm_weight), sr_norm_b(sr_norm_bias);
  const PoolArgs pool{
      H, W, s.C, pool_size, {norm_w.data(), norm_b.data(), static_cast<float>(eps)}};
  PatchArgs conv{};
  conv.H = conv.W = conv.out_H = conv.out_W = pool_size;
  conv.C_in = conv.C_out = s.C;
  conv.kernel_size = conv.stride = 1;
  conv.batch_stride = pool_size * pool_size * s.C, conv.row_stride = pool_size * s.C;
  conv.column_stride = s.C, conv.channel_stride = 1;
  conv.conv = linear_args(sr, sr_b);
  conv.norm = {sr_norm_w.data(), sr_norm_b.data(), static_cast<float>(sr_eps)};
  const float* in = static_cast<const float*>(tokens.const_data_ptr());
  float* keys = static_cast<float*>(out.mutable_data_ptr());
  dispatch_packed_dtype(kv_weight.scalar_type(), [&](auto type) {
    const int64_t per_image = pool_size * pool_size * s.C;
    const int64_t at_once = images_at_once(s.B, 2 * per_image);
    for (int64_t b = 0; b < s.B; b += at_once) {
      run<decltype(type)>(pool, conv, linear_args(kv, kv_b), std::min(at_once, s.B - b),
                          in + b * H * W * s.C, keys + b * 2 * per_image);
    }
  });
  return out;
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("pool_kv", TORCH_BOX(&pvt::pool_kv_cpu));
}
