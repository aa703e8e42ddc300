// conv_mlp_block_ on the CPU. Parallel over bands of images; where an image has few tokens, over
// columns of the weights, so that no band is all border. A token's sums are taken in the same order
// either way: the result depends neither on threads nor on the batch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/conv_mlp_block_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
namespace {

constexpr int64_t kFewTokens = 256;   // of an image: its hidden layer is computed as a whole,
constexpr int64_t kMostTokens = 512;  // that of several images with so many tokens together

// x: [images, H, W, C]
template <class scalar_t>
void run_columns(const ConvMlpArgs& args, int64_t images, float* x) {
  const MlpArgs& mlp = args.mlp;
  const int64_t C = mlp.C, rows = images * args.H * args.W;
  const auto row_units = PVT_BEST_LEVEL(row_units<scalar_t>);
  const int64_t depth = row_units(C), hidden_depth = row_units(mlp.hidden);
  const int64_t width = PVT_BEST_LEVEL(kConvolvedColumns<scalar_t>);
  const int64_t tile = columns_per_task(C, PVT_BEST_LEVEL(kMostColumns<scalar_t>));
  float* tokens = thread_scratch<Scratch::kShared>(rows * (depth + hidden_depth));
  float* hidden = tokens + rows * depth;

  const auto normalise = PVT_BEST_LEVEL(layer_norm_to_units<scalar_t>);
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    normalise(x + begin * C, C, end - begin, C, mlp.norm, tokens + begin * depth);
  });
  const auto up = PVT_BEST_LEVEL(hidden_columns_of_images<scalar_t>);
  parallel_tasks((mlp.hidden + width - 1) / width, [&](int64_t task) {
    const int64_t begin = task * width;
    up(args, tokens, images, begin, std::min(width, mlp.hidden - begin), hidden + row_units(begin),
       hidden_depth,
       thread_scratch(PVT_BEST_LEVEL(conv_columns_scratch_size<scalar_t>)(args, images)));
  });
  const auto down = PVT_BEST_LEVEL(residual_columns<scalar_t>);
  const int64_t column_tiles = (C + tile - 1) / tile;
  const int64_t threads = torch::stable::get_num_threads();  // take turns, as a rule
  const int64_t max_height = PVT_BEST_LEVEL(kRowLimits<scalar_t>).max_height;
  const int64_t row_tiles = (rows + max_height - 1) / max_height;
  parallel_tasks(row_tiles * column_tiles, [&](int64_t task) {
    const int64_t part = task / column_tiles, column = task % column_tiles * tile;
    const int64_t begin = part * rows / row_tiles, end = (part + 1) * rows / row_tiles;
    down(mlp.fc2, hidden + begin * hidden_depth, end - begin, mlp.hidden, column,
         std::min(tile, C - column), C, column + threads * tile, x + begin * C,
         thread_scratch(max_height * tile));
  });
}

// x: [images, H, W, C]
template <class scalar_t>
void run_bands(const ConvMlpArgs& args, int64_t images, float* x) {
  const int64_t row_size = args.W * args.mlp.C;
  const int64_t threads = torch::stable::get_num_threads();
  const bool divided = images < threads || images % threads != 0;
  const int64_t bands = divided ? std::min(threads, args.H) : 1;  // of an image
  const auto begin_of = [&](int64_t band) { return band * args.H / bands; };

  // The rows at either side of every border, as they are before any band is changed.
  const int64_t borders = images * (bands - 1);
  float* copies = thread_scratch<Scratch::kShared>(borders * 2 * row_size);  // [borders, 2, W, C]
  parallel_for(borders, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / (bands - 1), row = begin_of(i % (bands - 1) + 1);
      std::memcpy(copies + i * 2 * row_size, x + (image * args.H + row - 1) * row_size,
                  2 * row_size * sizeof(float));
    }
  });

  const auto mlp = PVT_BEST_LEVEL(conv_mlp_band<scalar_t>);
  const auto scratch_size = PVT_BEST_LEVEL(conv_mlp_scratch_size<scalar_t>);
  parallel_tasks(images * bands, [&](int64_t task) {
    const int64_t image = task / bands, band = task % bands;
    const int64_t begin = begin_of(band), end = begin_of(band + 1);
    const float* border = copies + (image * (bands - 1) + band) * 2 * row_size;  // the lower
    mlp(args,
        {x + image * args.H * row_size, begin, end, band > 0 ? border - 2 * row_size : nullptr,
         band + 1 < bands ? border + row_size : nullptr},
        thread_scratch(scratch_size(args, end - begin)));
  });
}

}  // namespace

void conv_mlp_block_cpu(Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                        const Tensor& norm_bias, double eps, const Tensor& fc1_weight,
                        const Tensor& fc1_bias, bool relu, const Tensor& dwconv_weight,
                        const Tensor& dwconv_bias, const Tensor& fc2_weight,
                        const Tensor& fc2_bias) {
  const MlpShape s = check_conv_mlp_block(x, H, W, norm_weight, norm_bias, fc1_weight, fc1_bias,
                                          dwconv_weight, dwconv_bias, fc2_weight, fc2_bias);
  if (s.rows == 0) {
    return;
  }
  if (!have_packed_kernel(x, {fc1_weight, fc2_weight})) {
    return conv_mlp_block_aten(x, H, W, norm_weight, norm_bias, eps, fc1_weight, fc1_bias, relu,
                               dwconv_weight, dwconv_bias, fc2_weight, fc2_bias);
  }
  const Vector norm_w(norm_weight), norm_b(norm_bias), fc1_b(fc1_bias), fc2_b(fc2_bias);
  const Vector taps(dwconv_weight), conv_b(dwconv_bias);
  const Tensor fc1 = contiguous_of(fc1_weight);
  const Tensor fc2 = contiguous_of(fc2_weight);
  ConvMlpArgs args;
  args.mlp.C = s.C, args.mlp.hidden = s.hidden;
  args.mlp.norm = {norm_w.data(), norm_b.data(), static_cast<float>(eps)};
  args.mlp.fc1 = linear_args(fc1, fc1_b);
  args.mlp.fc2 = linear_args(fc2, fc2_b);
  args.H = H, args.W = W, args.relu = relu;
  args.taps = taps.data(), args.conv_bias = conv_b.data();
  float* data = static_cast<float*>(x.mutable_data_ptr());
  dispatch_packed_dtype(fc1_weight.scalar_type(), [&](auto type) {
    using scalar_t = decltype(type);
    const int64_t images = s.rows / (H * W);
    if (H * W > kFewTokens) {
      return run_bands<scalar_t>(args, images, data);
    }
    const int64_t at_once = std::max<int64_t>(kMostTokens / (H * W), 1);
    for (int64_t b = 0; b < images; b += at_once) {
      run_columns<scalar_t>(args, std::min(at_once, images - b), data + b * H * W * s.C);
    }
  });
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("conv_mlp_block_", TORCH_BOX(&pvt::conv_mlp_block_cpu));
}
