// What becomes of the sums of a linear layer.
#pragma once

#include "cuda/gelu.h"
#include "cuda/tokens.h"

namespace pvt::cuda {

enum class Then {
  kStore,
  kGelu,
  kAdd,  // to what is there
};

// Columns [32 s, 32 s + 32) of every row.
template <class scalar_t, Then kThen, class Warp, int kTiles, class Rows>
PVT_DEVICE void put_strip(void* out, const Rows& rows, int s, Strip<Warp> (&sums)[kTiles]) {
  if constexpr (kThen == Then::kAdd) {
    add_strip<scalar_t>(out, rows, s, sums);
  } else {
    if constexpr (kThen == Then::kGelu) {
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) apply_gelu<scalar_t>(sums[tile]);
    }
    store_strip<scalar_t>(out, rows, s, sums);
  }
}

}  // namespace pvt::cuda
