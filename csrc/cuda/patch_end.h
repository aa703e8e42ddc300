// What follows the convolution of patch_embed and of spatial_reduction: its bias, a LayerNorm, and
// positions.
#pragma once

#include "cuda/tokens.h"

namespace pvt::cuda {

struct PatchEnd {
  const float* bias;  // of the convolution, [C]
  const float* norm_weight;
  const float* norm_bias;
  float eps;
  const float* position;  // [image_rows, C], or null
  int64_t image_rows;     // of an image
  void* out;              // [rows, C]
};

// out <- the sums of rows `first` and on, of `rows`, all columns of each.
template <class scalar_t, class Warp, int kStrips, int kTiles>
PVT_DEVICE void finish_rows(const PatchEnd& end, int64_t first, int64_t rows,
                            Strip<Warp> (&sums)[kStrips][kTiles]) {
  constexpr int C = kStrips * kStrip;
  const auto lane = Warp::lane();
  add_to_rows(sums, end.bias);
  normalise(sums, end.norm_weight, end.norm_bias, end.eps);
  PVT_UNROLL for (int tile = 0; tile < kTiles && end.position != nullptr; ++tile) {
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      const auto row = first + tile * kTile + 8 * half + (lane >> 2);
      const auto from = row % end.image_rows * int64_t{C} + ((lane & 3) << 3);
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        add_floats(end.position, from + s * kStrip, row < rows, half, sums[s][tile]);
      }
    }
  }
  const AdjacentRows<Warp> out{first, rows, C};
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) store_strip<scalar_t>(end.out, out, s, sums[s]);
}

}  // namespace pvt::cuda
