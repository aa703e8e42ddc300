// The start of pool_kv: LayerNorm of tokens, averaged over the cells of a coarse grid. Cell k of n
// has rows (or columns) floor(k H / n) .. ceil((k + 1) H / n), as in adaptive average pooling.
#pragma once

#include "cuda/tokens.h"

namespace pvt::cuda {

struct PoolArgs {
  const void* x;    // [B, H * W, C], tokens adjacent
  int H, W, cells;  // of an image: cells x cells
  const float* norm_weight;
  const float* norm_bias;
  float eps;
  void* out;  // [B * cells * cells, C]
};

template <class scalar_t_, int C_, int kWarps_>
struct PoolConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kWarps = kWarps_;
  static constexpr int kSharedBytes = kWarps * C * 4;
  static_assert(C <= 8 * kWarps * kLanes, "at the end a lane has eight channels");
};

// 16 of the tokens of a cell.
template <class Warp>
class CellRows {
 public:
  PVT_DEVICE CellRows(const PoolArgs& args, int C, int64_t cell)
      : row_bytes_(int64_t{2} * args.W * C), token_bytes_(int64_t{2} * C) {
    const int i = static_cast<int>(cell / args.cells % args.cells);
    const int j = static_cast<int>(cell % args.cells);
    const int64_t image = cell / args.cells / args.cells;
    const auto begin = [&](int k, int size) {
      return static_cast<int>(int64_t{k} * size / args.cells);
    };
    const auto end = [&](int k, int size) {
      return static_cast<int>((int64_t{k + 1} * size + args.cells - 1) / args.cells);
    };
    const int top = begin(i, args.H), left = begin(j, args.W);
    columns_ = end(j, args.W) - left;
    tokens_ = (end(i, args.H) - top) * columns_;
    first_byte_ = (image * args.H + top) * row_bytes_ + left * token_bytes_;
  }

  PVT_DEVICE int tokens() const { return tokens_; }
  PVT_DEVICE void move_to(int first) { first_ = first; }

  PVT_DEVICE typename Warp::Offset offset(int, int half) const {
    const auto token = first_ + 8 * half + (Warp::lane() >> 2);
    const auto row = token / columns_;
    return first_byte_ + row * row_bytes_ +
           ((token - row * columns_) * token_bytes_ + ((Warp::lane() & 3) << 4));
  }
  PVT_DEVICE typename Warp::Mask valid(int, int half) const {
    return first_ + 8 * half + (Warp::lane() >> 2) < tokens_;
  }

 private:
  int64_t row_bytes_, token_bytes_, first_byte_;
  int columns_, tokens_, first_ = 0;
};

// A block has a cell, and its warps share the tokens of it out.
template <class Config, class Block>
PVT_DEVICE void pool(Block& block, const PoolArgs& args) {
  using Warp = typename Block::Warp;
  using Float = typename Warp::Float;
  using scalar_t = typename Config::scalar_t;
  constexpr int C = Config::C;
  float* const sums = reinterpret_cast<float*>(block.shared());  // [warps, C]
  float* const own = sums + block.warp() * C;
  const auto channel = (Warp::lane() & 3) << 3;
  const auto adds = Warp::lane() < 4;  // of the lanes that have the same channels

  CellRows<Warp> rows(args, C, block.index());
  PVT_NO_UNROLL for (int s = 0; s < C / kStrip; ++s) {
    const Float zeros[4] = {Float(0.f), Float(0.f), Float(0.f), Float(0.f)};
    Warp::store_floats(own, s * kStrip + channel, zeros, adds);
    Warp::store_floats(own, s * kStrip + 4 + channel, zeros, adds);
  }
  PVT_NO_UNROLL for (int first = block.warp() * kTile; first < rows.tokens();
                     first += Config::kWarps * kTile) {
    rows.move_to(first);
    const RowNorm<scalar_t, Warp, 1> norm(args.x, rows, C, args.eps);
    PVT_NO_UNROLL for (int s = 0; s < C / kStrip; ++s) {
      Operand<Warp> tokens[1];
      load_strip(args.x, rows, s, tokens);
      norm.apply(args.norm_weight + s * kStrip, args.norm_bias + s * kStrip, tokens);
      PVT_UNROLL for (int c = 0; c < 8; c += 4) {
        Float four[4];
        Warp::load_floats(own, s * kStrip + c + channel, four, adds);
        PVT_UNROLL for (int i = 0; i < 4; ++i) {
          Float sum = Float(0.f);
          PVT_UNROLL for (int half = 0; half < 2; ++half) {
            const auto word = tokens[0].pair(half, (c + i) / 2);
            const Float value = i % 2 == 0 ? Warp::template low<scalar_t>(word)
                                           : Warp::template high<scalar_t>(word);
            sum = sum + Warp::select(rows.valid(0, half), value, Float(0.f));
          }
          PVT_UNROLL for (int bits = 4; bits < kLanes; bits *= 2) {
            sum = sum + Warp::exchange(sum, bits);
          }
          four[i] = four[i] + sum;
        }
        Warp::store_floats(own, s * kStrip + c + channel, four, adds);
      }
    }
  }
  block.sync();

  const Float share = Float(1.f / static_cast<float>(rows.tokens()));
  const auto first_channel = (block.warp() * kLanes + Warp::lane()) << 3;
  const auto exists = first_channel < C;
  Float mean[8];
  PVT_UNROLL for (int c = 0; c < 8; ++c) mean[c] = Float(0.f);
  for (int warp = 0; warp < Config::kWarps; ++warp) {
    PVT_UNROLL for (int c = 0; c < 8; c += 4) {
      Float four[4];
      Warp::load_floats(sums + warp * C, first_channel + c, four, exists);
      PVT_UNROLL for (int i = 0; i < 4; ++i) mean[c + i] = mean[c + i] + four[i];
    }
  }
  typename Warp::Vector v;
  PVT_UNROLL for (int i = 0; i < 4; ++i) {
    v.word[i] = Warp::template pack<scalar_t>(mean[2 * i] * share, mean[2 * i + 1] * share);
  }
  Warp::store(args.out, block.index() * int64_t{2 * C} + (first_channel << 1), v, exists);
}

}  // namespace pvt::cuda
