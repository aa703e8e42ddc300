// mlp on the CPU. Parallel over tiles of tokens; a token's sums are taken in the same order in any
// tile, so the result depends neither on threads nor on the batch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/row_tiles.h"
#include "cpu/weights.h"

#define PVT_KERNEL_BODY "cpu/mlp_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
namespace {

// The panels of weight [columns, depth], whose rows are the columns of the product.
template <class scalar_t>
Tensor packed_columns(const Tensor& weight) {
  const int64_t columns = weight.size(0), depth = weight.size(1);
  const int64_t units = PVT_BEST_LEVEL(right_units<scalar_t>)(depth);
  const auto pack = PVT_BEST_LEVEL(pack_columns<scalar_t, scalar_t>);
  Tensor packed = torch::stable::empty(
      {(columns + kPackedColumns - 1) / kPackedColumns, units, kPackedColumns}, ScalarType::Float);
  float* out = static_cast<float*>(packed.mutable_data_ptr());
  const scalar_t* src = static_cast<const scalar_t*>(weight.const_data_ptr());
  parallel_pack(columns, 4 * units, [&](int64_t column, int64_t count, float* scratch) {
    pack(src + column * depth, count, depth, depth, out + column * units, scratch);
  });
  return packed;
}

template <class scalar_t>
void run(const MlpShape& s, const Tensor& x, const Tensor& fc1_weight, const Vector& fc1_bias,
         const Tensor& fc2_weight, const Vector& fc2_bias, Tensor& out) {
  const Tensor fc1 = packed_columns<scalar_t>(fc1_weight);
  const Tensor fc2 = packed_columns<scalar_t>(fc2_weight);
  MlpArgs args;
  args.C = s.C, args.hidden = s.hidden;
  args.fc1 = linear_args(fc1, fc1_bias);
  args.fc2 = linear_args(fc2, fc2_bias);
  const auto mlp = PVT_BEST_LEVEL(plain_mlp_rows<scalar_t>);
  const RowTiles tiles(s.rows, 1, PVT_BEST_LEVEL(kRowLimits<scalar_t>));
  const int64_t scratch = PVT_BEST_LEVEL(mlp_scratch_size<scalar_t>)(tiles.height, s.C);
  const scalar_t* x_data = static_cast<const scalar_t*>(x.const_data_ptr());
  scalar_t* out_data = static_cast<scalar_t*>(out.mutable_data_ptr());
  parallel_tasks(tiles.count, [&](int64_t tile) {
    const int64_t begin = tiles.begin(tile) * s.C;
    mlp(args, x_data + begin, tiles.rows(tile), out_data + begin, thread_scratch(scratch));
  });
}

}  // namespace

Tensor mlp_cpu(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias,
               const Tensor& fc2_weight, const Tensor& fc2_bias) {
  const MlpShape s = check_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  if (x.scalar_type() == ScalarType::Double) {
    return mlp_aten(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  }
  Tensor out = torch::stable::empty({x.size(0), x.size(1), s.C}, x.scalar_type());
  if (s.rows > 0) {
    const Tensor rows = torch::stable::contiguous(x);
    const Tensor fc1 = torch::stable::contiguous(fc1_weight);
    const Tensor fc2 = torch::stable::contiguous(fc2_weight);
    dispatch_dtype("mlp", x.scalar_type(), [&](auto type) {
      run<decltype(type)>(s, rows, fc1, Vector(fc1_bias), fc2, Vector(fc2_bias), out);
    });
  }
  return out;
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("mlp", TORCH_BOX(&pvt::mlp_cpu));
}
