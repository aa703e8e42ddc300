// mlp_block_ on the CPU. Parallel over tiles of tokens, or, when tokens are too few to keep every
// thread busy, over columns of the weights, so that each weight is read once. A token's sums are
// taken in the same order either way: the result depends neither on threads nor on the batch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/mlp_block_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
namespace {

template <class scalar_t>
void run_rows(const MlpArgs& args, const RowTiles& tiles, float* x) {
  const auto mlp = PVT_BEST_LEVEL(mlp_rows<scalar_t>);
  const int64_t scratch = PVT_BEST_LEVEL(mlp_scratch_size<scalar_t>)(tiles.height, args.C);
  parallel_tasks(tiles.count, [&](int64_t tile) {
    mlp(args, x + tiles.begin(tile) * args.C, tiles.rows(tile), thread_scratch(scratch));
  });
}

template <class scalar_t>
void run_columns(const MlpArgs& args, int64_t rows, float* x) {
  const auto normalise = PVT_BEST_LEVEL(layer_norm_to_units<scalar_t>);
  const auto up = PVT_BEST_LEVEL(hidden_columns<scalar_t>);
  const auto down = PVT_BEST_LEVEL(residual_columns<scalar_t>);
  const auto row_units = PVT_BEST_LEVEL(row_units<scalar_t>);
  const int64_t width = PVT_BEST_LEVEL(kGeluColumns<scalar_t>);
  const int64_t tile = columns_per_task(args.C, PVT_BEST_LEVEL(kMostColumns<scalar_t>));
  const int64_t C_units = row_units(args.C), hidden_units = row_units(args.hidden);
  const int64_t threads = torch::stable::get_num_threads();  // take turns, as a rule
  float* tokens = thread_scratch<Scratch::kShared>(rows * (C_units + hidden_units));
  float* hidden = tokens + rows * C_units;

  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    normalise(x + begin * args.C, args.C, end - begin, args.C, args.norm, tokens + begin * C_units);
  });
  const auto first_panels = PVT_BEST_LEVEL(first_panels<scalar_t>);
  parallel_tasks((args.hidden + width - 1) / width, [&](int64_t task) {
    const int64_t begin = task * width;
    up(args, tokens, rows, begin, std::min(width, args.hidden - begin), hidden + row_units(begin),
       hidden_units, thread_scratch(PVT_BEST_LEVEL(kHiddenScratchSize<scalar_t>)),
       first_panels(args.fc1, args.C, args.hidden, begin + threads * width, 0),
       /*kept=*/nullptr);
  });
  parallel_tasks((args.C + tile - 1) / tile, [&](int64_t task) {
    const int64_t begin = task * tile;
    down(args.fc2, hidden, rows, args.hidden, begin, std::min(tile, args.C - begin), args.C,
         begin + threads * tile, x, thread_scratch(rows * tile));
  });
}

}  // namespace

void mlp_block_cpu(Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                   const Tensor& fc1_weight, const Tensor& fc1_bias, const Tensor& fc2_weight,
                   const Tensor& fc2_bias) {
  const MlpShape s =
      check_mlp_block(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  if (s.rows == 0) {
    return;
  }
  if (!have_packed_kernel(x, {fc1_weight, fc2_weight})) {
    return mlp_block_aten(x, norm_weight, norm_bias, eps, fc1_weight, fc1_bias, fc2_weight,
                          fc2_bias);
  }
  const Vector norm_w(norm_weight), norm_b(norm_bias), fc1_b(fc1_bias), fc2_b(fc2_bias);
  const Tensor fc1 = contiguous_of(fc1_weight);
  const Tensor fc2 = contiguous_of(fc2_weight);
  MlpArgs args;
  args.C = s.C, args.hidden = s.hidden;
  args.norm = {norm_w.data(), norm_b.data(), static_cast<float>(eps)};
  args.fc1 = linear_args(fc1, fc1_b);
  args.fc2 = linear_args(fc2, fc2_b);
  float* data = static_cast<float*>(x.mutable_data_ptr());
  dispatch_packed_dtype(fc1_weight.scalar_type(), [&](auto type) {
    using scalar_t = decltype(type);
    const RowTiles tiles(s.rows, 1, PVT_BEST_LEVEL(kRowLimits<scalar_t>));
    if (tiles.too_few()) {
      run_columns<scalar_t>(args, s.rows, data);
    } else {
      run_rows<scalar_t>(args, tiles, data);
    }
  });
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("mlp_block_", TORCH_BOX(&pvt::mlp_block_cpu));
}
