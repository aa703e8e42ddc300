// Rows of tokens between memory and registers. Lanes hold channels as strips.h says.
#pragma once

#include "cuda/strips.h"

namespace pvt::cuda {

// The sum of what the four lanes of a row have; every one of them gets it.
template <class Warp>
PVT_DEVICE typename Warp::Float sum_of_row(typename Warp::Float value) {
  value = value + Warp::exchange(value, 1);
  return value + Warp::exchange(value, 2);
}

// kTiles * 16 consecutive rows of x [rows, C], from `first` on; rows beyond the last are zeros when
// read and are not written.
template <class Warp, int C, int kTiles>
struct TokenRows {
  static_assert(C % kStrip == 0, "a lane has whole 16-byte vectors");
  using Float = typename Warp::Float;
  static constexpr int kStrips = C / kStrip;
  static constexpr int kRows = kTiles * kTile;

  int64_t first, rows;

  // Byte of the lane's first channel in row g + 8 half of a tile.
  PVT_DEVICE typename Warp::Offset offset(int tile, int half) const {
    const auto lane = Warp::lane();
    return (first + tile * kTile + 8 * half + (lane >> 2)) * int64_t{2 * C} + ((lane & 3) << 4);
  }
  PVT_DEVICE typename Warp::Mask valid(int tile, int half) const {
    return first + tile * kTile + 8 * half + (Warp::lane() >> 2) < rows;
  }

  // LayerNorm of every row, as operands [kStrips][kTiles]. Mean and variance in float32, the
  // variance from what is left of the mean.
  template <class scalar_t>
  PVT_DEVICE void load_normalised(const void* x, const float* weight, const float* bias, float eps,
                                  Operand<Warp> (&operands)[kStrips][kTiles]) const {
    Float mean[kTiles][2], scale[kTiles][2];
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        Float sum = Float(0.f), squares = Float(0.f);
        PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
          const auto v = Warp::load(x, offset(tile, half) + s * 2 * kStrip, valid(tile, half));
          PVT_UNROLL for (int i = 0; i < 4; ++i) {
            operands[s][tile].pair(half, i) = v.word[i];  // as they are, for now
            sum = sum + (Warp::template low<scalar_t>(v.word[i]) +
                         Warp::template high<scalar_t>(v.word[i]));
          }
        }
        const Float m = sum_of_row<Warp>(sum) * Float(1.f / C);
        PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
          PVT_UNROLL for (int i = 0; i < 4; ++i) {
            const auto word = operands[s][tile].pair(half, i);
            const Float low = Warp::template low<scalar_t>(word) - m;
            const Float high = Warp::template high<scalar_t>(word) - m;
            squares = Warp::fma(high, high, Warp::fma(low, low, squares));
          }
        }
        mean[tile][half] = m;
        scale[tile][half] =
            Warp::rsqrt(Warp::fma(sum_of_row<Warp>(squares), Float(1.f / C), Float(eps)));
      }
    }
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      Float w[8], b[8];
      load_channels<Warp>(weight + s * kStrip, w);
      load_channels<Warp>(bias + s * kStrip, b);
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        PVT_UNROLL for (int half = 0; half < 2; ++half) {
          PVT_UNROLL for (int i = 0; i < 4; ++i) {
            auto& word = operands[s][tile].pair(half, i);
            const Float low =
                (Warp::template low<scalar_t>(word) - mean[tile][half]) * scale[tile][half];
            const Float high =
                (Warp::template high<scalar_t>(word) - mean[tile][half]) * scale[tile][half];
            word = Warp::template pack<scalar_t>(Warp::fma(low, w[2 * i], b[2 * i]),
                                                 Warp::fma(high, w[2 * i + 1], b[2 * i + 1]));
          }
        }
      }
    }
  }

  // y <- x + strips, columns [32 s, 32 s + 32) of every row; y may be x.
  template <class scalar_t>
  PVT_DEVICE void store_sum(const void* x, void* y, int s, Strip<Warp> (&strips)[kTiles]) const {
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        const auto at = offset(tile, half) + s * 2 * kStrip;
        auto v = Warp::load(x, at, valid(tile, half));
        PVT_UNROLL for (int i = 0; i < 4; ++i) {
          v.word[i] = Warp::template pack<scalar_t>(
              Warp::template low<scalar_t>(v.word[i]) + strips[tile].at(half, 2 * i),
              Warp::template high<scalar_t>(v.word[i]) + strips[tile].at(half, 2 * i + 1));
        }
        Warp::store(y, at, v, valid(tile, half));
      }
    }
  }
};

}  // namespace pvt::cuda
