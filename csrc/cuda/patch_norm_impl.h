// The end of patch_embed and of spatial_reduction where convolve() left sums.
#pragma once

#include "cuda/patch_end.h"

namespace pvt::cuda {

struct PatchNormArgs {
  const float* sums;  // [splits, rows, C]
  int64_t rows;
  int splits, C;
  PatchEnd end;
};

// A warp has a row, a lane eight channels of every 256, of up to kMaxChannels.
constexpr int kMaxChannels = 512;

template <class scalar_t, class Block>
PVT_DEVICE void patch_norm(Block& block, const PatchNormArgs& args) {
  using Warp = typename Block::Warp;
  using Float = typename Warp::Float;
  constexpr int kVectors = kMaxChannels / (8 * kLanes);
  const int64_t row = block.index() * (Block::kThreads / kLanes) + block.warp();
  if (row >= args.rows) {
    return;
  }
  const auto first = Warp::lane() << 3;
  Float values[kVectors][8];
  const auto channel = [&](int v) { return first + v * 8 * kLanes; };
  const auto add = [&](const float* from, int64_t from_row) {
    PVT_UNROLL for (int v = 0; v < kVectors; ++v) {
      PVT_UNROLL for (int c = 0; c < 8; c += 4) {
        Float four[4];
        Warp::load_floats(from + from_row * args.C, channel(v) + c, four, channel(v) < args.C);
        PVT_UNROLL for (int i = 0; i < 4; ++i) values[v][c + i] = values[v][c + i] + four[i];
      }
    }
  };
  const auto sum_of_warp = [](Float value) {
    PVT_UNROLL for (int bits = 1; bits < kLanes; bits *= 2) {
      value = value + Warp::exchange(value, bits);
    }
    return value;
  };

  PVT_UNROLL for (int v = 0; v < kVectors; ++v) {
    PVT_UNROLL for (int c = 0; c < 8; ++c) values[v][c] = Float(0.f);
  }
  add(args.end.bias, 0);
  for (int split = 0; split < args.splits; ++split)
    add(args.sums, split * args.rows + row);

  const Float share = Float(1.f) * Warp::reciprocal(Float(static_cast<float>(args.C)));
  Float sum = Float(0.f), squares = Float(0.f);
  PVT_UNROLL for (int v = 0; v < kVectors; ++v) {
    PVT_UNROLL for (int c = 0; c < 8; ++c) sum = sum + values[v][c];  // zeros beyond the last
  }
  const Float mean = sum_of_warp(sum) * share;
  PVT_UNROLL for (int v = 0; v < kVectors; ++v) {
    PVT_UNROLL for (int c = 0; c < 8; ++c) {
      values[v][c] = Warp::select(channel(v) < args.C, values[v][c] - mean, Float(0.f));
      squares = Warp::fma(values[v][c], values[v][c], squares);
    }
  }
  const Float scale = Warp::rsqrt(Warp::fma(sum_of_warp(squares), share, Float(args.end.eps)));
  PVT_UNROLL for (int v = 0; v < kVectors; ++v) {
    const auto exists = channel(v) < args.C;
    PVT_UNROLL for (int c = 0; c < 8; c += 4) {
      Float w[4], b[4];
      Warp::load_floats(args.end.norm_weight, channel(v) + c, w, exists);
      Warp::load_floats(args.end.norm_bias, channel(v) + c, b, exists);
      PVT_UNROLL for (int i = 0; i < 4; ++i) {
        values[v][c + i] = Warp::fma(values[v][c + i] * scale, w[i], b[i]);
      }
    }
  }
  if (args.end.position != nullptr)
    add(args.end.position, row % args.end.image_rows);
  PVT_UNROLL for (int v = 0; v < kVectors; ++v) {
    typename Warp::Vector packed;
    PVT_UNROLL for (int i = 0; i < 4; ++i) {
      packed.word[i] = Warp::template pack<scalar_t>(values[v][2 * i], values[v][2 * i + 1]);
    }
    Warp::store(args.end.out, row * int64_t{2} * args.C + (channel(v) << 1), packed,
                channel(v) < args.C);
  }
}

}  // namespace pvt::cuda
