// Products of a warpgroup, four warps with 16 rows each: by wgmma, which reads weights from shared
// memory itself. Operands and sums lie in registers as they do for a warp's own products
// (strips.h), in which blocks of weights stand for squares.
#pragma once

#include "cuda/chunks.h"
#include "cuda/strips.h"
#include "cuda/weight_blocks.h"

namespace pvt::cuda {

constexpr int kGroupWarps = 4;
constexpr int kGroupRows = kGroupWarps * kTile;

// strips += operands * blocks: of so many columns, 64 inputs. Others may compute meanwhile.
//   blocks: one after the other, for two strips each
//   kFresh: strips = operands * blocks
template <class scalar_t, bool kFresh = false, class Warp, int kStrips>
PVT_DEVICE void multiply_blocks(Strip<Warp> (&strips)[kStrips], const Operand<Warp>& first,
                                const Operand<Warp>& second, typename Warp::Blocks blocks) {
  PVT_UNROLL for (int s = 0; s < kStrips; s += 2) {
    PVT_UNROLL for (int step = 0; step < 4; ++step) {
      const auto& operand = (step < 2 ? first : second).step[step % 2];
      const auto block = Warp::after(blocks, s / 2 * kBlockBytes);
      if (kFresh && step == 0) {
        Warp::template multiply_block<scalar_t, true>(strips[s].sum, strips[s + 1].sum, operand,
                                                      block, step);
      } else {
        Warp::template multiply_block<scalar_t, false>(strips[s].sum, strips[s + 1].sum, operand,
                                                       block, step);
      }
    }
  }
}

// What computes with the strips, or operands, stays on its side of this in the program: before the
// products that use them, after a wait, or before the next one.
template <class Warp, int kStrips>
PVT_DEVICE void settle(Strip<Warp> (&strips)[kStrips]) {
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) Warp::settle(strips[s].sum);
}

template <class Warp, int kCount>
PVT_DEVICE void settle(Operand<Warp> (&operands)[kCount]) {
  PVT_UNROLL for (int i = 0; i < kCount; ++i) Warp::settle(operands[i].step);
}

// Before products: what they multiply is not touched until they are waited for.
template <class Warp, class... Operands>
PVT_DEVICE void begin_products(Operands&... operands) {
  (Warp::settle(operands.step), ...);
  Warp::begin_products();
}

// strips += the bias of 64 columns
template <class Warp>
PVT_DEVICE void add_bias(Strip<Warp> (&strips)[2], const float* bias) {
  PVT_UNROLL for (int s = 0; s < 2; ++s) {
    const Strip<Warp> row = bias_strip<Warp>(bias + s * kStrip);
    PVT_UNROLL for (int j = 0; j < 4; ++j) {
      PVT_UNROLL for (int i = 0; i < 4; ++i) {
        strips[s].sum[j][i] = strips[s].sum[j][i] + row.sum[j][i];
      }
    }
  }
}

// sums of 64 columns = tokens * blocks, of all inputs
template <class scalar_t, class Warp, int kStrips>
PVT_DEVICE void multiply_tokens(Strip<Warp> (&sums)[2], const Operand<Warp> (&tokens)[kStrips],
                                typename Warp::Blocks blocks) {
  multiply_blocks<scalar_t, true>(sums, tokens[0], tokens[1], blocks);
  PVT_UNROLL for (int s = 2; s < kStrips; s += 2) {
    multiply_blocks<scalar_t>(sums, tokens[s], tokens[s + 1],
                              Warp::after(blocks, s / 2 * kBlockBytes));
  }
}

}  // namespace pvt::cuda
