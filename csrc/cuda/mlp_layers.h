// The linear layers of an MLP whose hidden layer is in memory: the shapes they run in, and their
// launch.
#pragma once

#include <optional>

#include "cuda/linear_warpgroup.h"
#include "cuda/mlp_block_impl.h"
#include "cuda/packed.h"

namespace pvt::cuda {

// The hidden channels must be a multiple of it.
constexpr int kLayersDepth = 128;

// The parameters of an MLP as kernels take them.
class MlpParameters {
 public:
  MlpParameters(const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& fc1_weight,
                const Tensor& fc1_bias, const Tensor& fc2_weight, const Tensor& fc2_bias)
      : norm_weight_(norm_weight),
        norm_bias_(norm_bias),
        fc1_bias_(fc1_bias),
        fc2_bias_(fc2_bias),
        fc1_weight_(fc1_weight),
        fc2_weight_(fc2_weight) {}

  // Valid as long as this is.
  MlpBlockArgs args(Tensor& x, const MlpShape& shape, double eps) const {
    return {x.mutable_data_ptr(),    shape.rows,
            norm_weight_.data(),     norm_bias_.data(),
            static_cast<float>(eps), fc1_weight_.data(),
            fc1_bias_.data(),        fc2_weight_.data(),
            fc2_bias_.data(),        static_cast<int>(shape.hidden)};
  }

 private:
  Vector norm_weight_, norm_bias_, fc1_bias_, fc2_bias_;
  Weight fc1_weight_, fc2_weight_;
};

// Many rows: as many of them, and as many columns, as a warp's registers hold sums of.
template <class scalar_t, Then kThen>
using WideFc1 = StreamedLinearConfig<scalar_t, /*kNorm=*/true, kThen, /*kTiles=*/2, /*kStrips=*/4,
                                     /*kWarps=*/8, /*kDepth=*/32, /*kSlots=*/4>;
template <class scalar_t, int C>
using WideFc2 = StreamedLinearConfig<scalar_t, /*kNorm=*/false, Then::kAdd, /*kTiles=*/2,
                                     /*kStrips=*/C % 160 == 0 ? 5 : (C < 128 ? C / kStrip : 4),
                                     /*kWarps=*/8, /*kDepth=*/32, /*kSlots=*/4>;

// Whether wide blocks fill the GPU.
template <class scalar_t, int C>
bool has_many_rows(const Device& device, int64_t rows) {
  using Fc2 = WideFc2<scalar_t, C>;
  return rows / Fc2::kRows * (C / Fc2::kColumns) >= device.multiprocessors();
}

// Whether warpgroups are faster: measured on an H200.
template <class scalar_t, int C>
bool are_for_warpgroups(const Device& device, const MlpBlockArgs& args) {
  return args.hidden % kLayersDepth == 0 &&
         has_rows_for_warpgroups<scalar_t, C>(device, args.rows, 0.25);
}

// Both layers of one call.   kMany: whether there may be many rows
template <class scalar_t, int C, bool kMany>
class MlpLayers {
 public:
  // x: the tokens again, for memory.
  MlpLayers(const Device& device, const Tensor& x, const MlpBlockArgs& args)
      : device_(device), args_(args) {
    if constexpr (kHasWarpgroups) {
      if (are_for_warpgroups<scalar_t, C>(device, args)) {
        const PackedWeight weights[] = {{args.fc1_weight, args.hidden, C, kStayingFollow},
                                        {args.fc2_weight, C, args.hidden, kPassingFollow}};
        blocks_.emplace(device, x, weights);
      }
    }
  }

  // hidden [rows, args.hidden] <- fc1 of the normalised tokens.
  template <Then kThen>
  void fc1(void* hidden) const {
    LinearArgs fc1{};
    fc1.x = args_.x, fc1.rows = args_.rows;
    fc1.norm_weight = args_.norm_weight, fc1.norm_bias = args_.norm_bias, fc1.eps = args_.eps;
    fc1.weight = args_.fc1_weight, fc1.bias = args_.fc1_bias;
    fc1.out = hidden, fc1.columns = args_.hidden;
    if constexpr (kHasWarpgroups) {
      if (blocks_.has_value()) {
        fc1.weight = blocks_->data(0);
        return launch_staying_linear<scalar_t, C, kThen>(device_, streamed<C>(fc1));
      }
    }
    if constexpr (kMany) {
      if (has_many_rows<scalar_t, C>(device_, args_.rows)) {
        return run_streamed_linear<WideFc1<scalar_t, kThen>>(device_, streamed<C>(fc1));
      }
    }
    run_linear<scalar_t, C, Source::kTokens, kThen>(device_, fc1);
  }

  // x <- x + fc2 of hidden.
  void fc2(const void* hidden) const {
    StreamedLinearArgs fc2{};
    fc2.x = hidden, fc2.rows = args_.rows, fc2.depth = args_.hidden;
    fc2.weight = args_.fc2_weight, fc2.bias = args_.fc2_bias;
    fc2.out = args_.x, fc2.columns = C;
    if constexpr (kHasWarpgroups) {
      if (blocks_.has_value()) {
        fc2.weight = blocks_->data(1);
        return launch_passing_linear<scalar_t, C, Then::kAdd>(device_, fc2);
      }
    }
    if constexpr (kMany) {
      if (has_many_rows<scalar_t, C>(device_, args_.rows)) {
        return run_streamed_linear<WideFc2<scalar_t, C>>(device_, fc2);
      }
    }
    run_narrow_linear<scalar_t, kLayersDepth>(device_, fc2);
  }

 private:
  static constexpr bool kHasWarpgroups = kMany && C % kBlock == 0;

  const Device& device_;
  const MlpBlockArgs& args_;
  std::optional<WeightBlocks<2>> blocks_;  // where warpgroups multiply
};

}  // namespace pvt::cuda
