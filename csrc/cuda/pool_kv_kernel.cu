// pool_kv on CUDA: which tokens have kernels, and their launch. There are three: the cells'
// averages, the product with sr_weight, and keys and values of what that leaves.
#include <torch/csrc/stable/library.h>

#include "aten/kernels.h"
#include "cuda/convolve.h"
#include "cuda/linear.h"
#include "cuda/packed.h"
#include "cuda/pool_impl.h"

namespace pvt::cuda {
namespace {

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes) pool_kernel(PoolArgs args) {
  DeviceBlock<Config::kWarps> block;
  pool<Config>(block, args);
}

// sr_weight: packed [C, C]
template <class scalar_t, int C, int kStrips>
void run(const Device& device, const Tensor& x, PoolArgs pooling, const char* sr_weight,
         LinearArgs args) {
  using Config = PoolConfig<scalar_t, C, /*kWarps=*/4>;
  const Tensor cells = torch::stable::new_empty(x, {args.rows, C});
  pooling.out = cells.mutable_data_ptr();
  launch<pool_kernel<Config>>(device, args.rows, Config::kWarps * kLanes, Config::kSharedBytes,
                              pooling);
  // Cells are images of one token.
  ConvolveArgs product{};
  product.x = cells.const_data_ptr();
  product.image_bytes = product.row_bytes = product.column_bytes = int64_t{2} * C;
  product.H = product.W = product.out_H = product.out_W = 1;
  product.kernel_size = product.stride = 1;
  product.weight = sr_weight;
  product.rows = args.rows, product.C_out = C;
  const Tensor sums = run_convolution<scalar_t, C, kStrips, false>(device, x, product);
  args.x = sums.const_data_ptr(), args.splits = product.splits;
  // (At 512 channels the sums of 16 rows are more than a thread's registers, and pass through its
  // local memory once.)
  run_linear<scalar_t, C, Source::kActiveSums, Then::kStore>(device, args);
}

// Runs kernels if there are some for so many channels.
template <class scalar_t>
bool dispatch_channels(const Device& device, const Tensor& x, int64_t C, const PoolArgs& pooling,
                       const char* sr_weight, const LinearArgs& args) {
  switch (C) {
    case 64:
      return run<scalar_t, 64, 2>(device, x, pooling, sr_weight, args), true;
    case 128:
      return run<scalar_t, 128, 4>(device, x, pooling, sr_weight, args), true;
    case 320:
      return run<scalar_t, 320, 5>(device, x, pooling, sr_weight, args), true;
    case 512:
      return run<scalar_t, 512, 2>(device, x, pooling, sr_weight, args), true;
    default:
      return false;
  }
}

}  // namespace

Tensor pool_kv_cuda(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                    const Tensor& norm_bias, double eps, int64_t pool_size, const Tensor& sr_weight,
                    const Tensor& sr_bias, const Tensor& sr_norm_weight, const Tensor& sr_norm_bias,
                    double sr_eps, const Tensor& kv_weight, const Tensor& kv_bias) {
  const PoolShape s = check_pool_kv(x, H, W, norm_weight, norm_bias, pool_size, sr_weight, sr_bias,
                                    sr_norm_weight, sr_norm_bias, kv_weight, kv_bias);
  const Device device("pool_kv", x);
  if (have_packed_kernel(device, x, {sr_weight, kv_weight}) && H * W <= INT32_MAX / kTile) {
    const int64_t cells = pool_size * pool_size;
    Tensor out = torch::stable::new_empty(x, {s.B, cells, 2 * s.C});
    if (s.B == 0) {
      return out;
    }
    const Tensor tokens = dense(x);
    const Vector norm_w(norm_weight), norm_b(norm_bias), sr_b(sr_bias), kv_b(kv_bias);
    const Vector sr_norm_w(sr_norm_weight), sr_norm_b(sr_norm_bias);
    const Weight sr(sr_weight), kv(kv_weight);
    PoolArgs pooling{};
    pooling.x = tokens.const_data_ptr();
    pooling.H = static_cast<int>(H), pooling.W = static_cast<int>(W);
    pooling.cells = static_cast<int>(pool_size);
    pooling.norm_weight = norm_w.data(), pooling.norm_bias = norm_b.data();
    pooling.eps = static_cast<float>(eps);
    LinearArgs args{};
    args.rows = s.B * cells;
    args.sums_bias = sr_b.data();
    args.norm_weight = sr_norm_w.data(), args.norm_bias = sr_norm_b.data();
    args.eps = static_cast<float>(sr_eps);
    args.weight = kv.data(), args.bias = kv_b.data();
    args.out = out.mutable_data_ptr(), args.columns = static_cast<int>(2 * s.C);
    bool done = false;
    dispatch_16_bit(x.scalar_type(), [&](auto type) {
      done = dispatch_channels<decltype(type)>(device, x, s.C, pooling, sr.data(), args);
    });
    if (done) {
      return out;
    }
  }
  return pool_kv_aten(x, H, W, norm_weight, norm_bias, eps, pool_size, sr_weight, sr_bias,
                      sr_norm_weight, sr_norm_bias, sr_eps, kv_weight, kv_bias);
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("pool_kv", TORCH_BOX(&pvt::cuda::pool_kv_cuda));
}
