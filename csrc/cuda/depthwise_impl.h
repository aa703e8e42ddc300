// Between the linear layers of PVT v2's MLP: GELU of a 3 x 3 depthwise convolution of tokens, with
// zeros around the image.
#pragma once

#include "cuda/gelu.h"

namespace pvt::cuda {

struct DepthwiseArgs {
  const void* x;        // [B, H, W, C]
  int B, H, W, C;       // C a multiple of 8
  const float* weight;  // [3, 3, C]
  const float* bias;
  void* out;  // [B, H, W, C]
};

// A lane has 8 channels of this many tokens that follow each other in a row of the grid, and reads
// each of their neighbours once for all of them.
constexpr int kRun = 4;

// Lanes that the kernel needs, numbered over [B][H][runs of a row][8 channels]; at most INT32_MAX,
// which the numbers of the last block do not pass either.
inline int64_t depthwise_lanes(int64_t B, int64_t H, int64_t W, int64_t C) {
  return B * H * ((W + kRun - 1) / kRun) * (C / 8);
}

// kRelu: x passes a ReLU first.
template <class scalar_t, bool kRelu, class Block>
PVT_DEVICE void depthwise_gelu(Block& block, const DepthwiseArgs& args) {
  using Warp = typename Block::Warp;
  using Float = typename Warp::Float;
  const int vectors = args.C / 8, runs = (args.W + kRun - 1) / kRun;
  const auto number =
      static_cast<int>(block.index()) * Block::kThreads + block.warp() * kLanes + Warp::lane();
  const auto run = number / vectors, row = run / runs, image = row / args.H;  // row: of all images
  const auto channel = (number - run * vectors) << 3, column = (run - row * runs) * kRun;
  const auto in_image = row - image * args.H;
  const auto exists = image < args.B;
  const auto offset = [&](const auto& token_row, const auto& token_column) {
    return ((token_row * int64_t{1} * args.W + token_column) * args.C + channel) * 2;
  };

  Float sums[kRun][8];
  {
    Float bias[2][4];
    PVT_UNROLL for (int c = 0; c < 2; ++c) {
      Warp::load_floats(args.bias, channel + 4 * c, bias[c], exists);
    }
    PVT_UNROLL for (int t = 0; t < kRun; ++t) {
      PVT_UNROLL for (int c = 0; c < 8; ++c) sums[t][c] = bias[c / 4][c % 4];
    }
  }
  PVT_UNROLL for (int r = -1; r <= 1; ++r) {
    const auto inside = exists && -1 < in_image + r && in_image + r < args.H;
    Float weight[3][8];
    PVT_UNROLL for (int s = 0; s < 3; ++s) {
      PVT_UNROLL for (int c = 0; c < 8; c += 4) {
        Float four[4];
        Warp::load_floats(args.weight + (3 * (r + 1) + s) * args.C, channel + c, four, exists);
        PVT_UNROLL for (int i = 0; i < 4; ++i) weight[s][c + i] = four[i];
      }
    }
    PVT_UNROLL for (int neighbour = -1; neighbour <= kRun; ++neighbour) {
      const auto at = column + neighbour;
      const auto token = Warp::load(args.x, offset(row + r, at), inside && -1 < at && at < args.W);
      PVT_UNROLL for (int c = 0; c < 8; ++c) {
        Float value = c % 2 == 0 ? Warp::template low<scalar_t>(token.word[c / 2])
                                 : Warp::template high<scalar_t>(token.word[c / 2]);
        if constexpr (kRelu) {
          value = Warp::select(value < Float(0.f), Float(0.f), value);  // NaN stays
        }
        PVT_UNROLL for (int s = 0; s < 3; ++s) {
          const int t = neighbour + 1 - s;  // token whose neighbour s it is
          if (0 <= t && t < kRun)
            sums[t][c] = Warp::fma(value, weight[s][c], sums[t][c]);
        }
      }
    }
  }
  PVT_UNROLL for (int t = 0; t < kRun; ++t) {
    typename Warp::Vector v;
    PVT_UNROLL for (int i = 0; i < 4; ++i) {
      v.word[i] = Warp::template pack<scalar_t>(gelu<scalar_t, Warp>(sums[t][2 * i]),
                                                gelu<scalar_t, Warp>(sums[t][2 * i + 1]));
    }
    Warp::store(args.out, offset(row, column + t), v, exists && column + t < args.W);
  }
}

}  // namespace pvt::cuda
