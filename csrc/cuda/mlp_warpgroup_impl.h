// The body of mlp_block_ for warpgroups: x <- x + fc2(gelu(fc1(LayerNorm(x)))). As
// mlp_block_impl.h, hidden channels pass 64 at a time and are never in memory.
#pragma once

#include "cuda/gelu.h"
#include "cuda/mlp_block_impl.h"
#include "cuda/warpgroup.h"

namespace pvt::cuda {

struct MlpWarpgroupArgs {
  MlpBlockArgs mlp;
  const char* fc1_blocks;  // those of all inputs follow each other
  const char* fc2_blocks;  // those of all columns
};

template <class scalar_t_, int C_, int kWarps_, int kSlots_>
struct MlpWarpgroupConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr int kStrips = C / kStrip, kRows = kWarps * kTile;
  static_assert(C % kBlock == 0 && kWarps % kGroupWarps == 0, "whole blocks and warpgroups");

  // A slot: blocks of fc1, blocks of fc2.
  static constexpr int kWeightBytes = C / kBlock * kBlockBytes;
  static constexpr int kSlotBytes = 2 * kWeightBytes;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
};

// Starts the copy of hidden channels [64 chunk, 64 (chunk + 1)).
template <class Config, class Block>
PVT_DEVICE void copy_hidden_blocks(Block& block, const MlpWarpgroupArgs& args, int chunk,
                                   char* slot) {
  constexpr int kBytes = Config::kWeightBytes;
  block.template copy_piece<kBytes>(slot, args.fc1_blocks + int64_t{chunk} * kBytes);
  block.template copy_piece<kBytes>(slot + kBytes, args.fc2_blocks + int64_t{chunk} * kBytes);
}

// 16 tokens of a warp.
template <class Config, class Warp>
class MlpWarpgroupRows {
 public:
  using scalar_t = typename Config::scalar_t;
  static constexpr int kStrips = Config::kStrips;

  PVT_DEVICE explicit MlpWarpgroupRows(const MlpBlockArgs& args) : args_(args) {}

  PVT_DEVICE void load(int64_t first) {
    rows_.first = first, rows_.rows = args_.rows;
    each_normalised<scalar_t, kStrips, Warp, 1>(
        args_.x, rows_, args_.norm_weight, args_.norm_bias, args_.eps,
        [&](int s, Operand<Warp>(&token)[1]) { tokens_[s] = token[0]; });
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      sums_[s] = bias_strip<Warp>(args_.fc2_bias + s * kStrip);
    }
  }

  // Adds what `count` chunks of hidden channels contribute. GELU of one is computed while fc2
  // multiplies the one before.
  template <class Chunks>
  PVT_DEVICE void add_hidden(int count, Chunks& chunks) {
    Strip<Warp> hidden[2];
    Operand<Warp> active[2];
    auto slot = Warp::blocks(chunks.next());
    Warp::begin_products();
    multiply_tokens<scalar_t>(hidden, tokens_, slot);
    Warp::commit_products();
    Warp::template wait_products<0>();
    activate(hidden, 0);
    PVT_UNROLL for (int s = 0; s < 2; ++s) round<scalar_t>(hidden[s], active[s]);
    PVT_NO_UNROLL for (int chunk = 1; chunk < count; ++chunk) {
      const auto fc2 = Warp::after(slot, Config::kWeightBytes);
      slot = Warp::blocks(chunks.next());
      begin_products(sums_, active[0], active[1]);
      multiply_tokens<scalar_t>(hidden, tokens_, slot);
      Warp::commit_products();
      multiply_blocks<scalar_t>(sums_, active[0], active[1], fc2);
      Warp::commit_products();
      Warp::template wait_products<1>();
      activate(hidden, chunk);
      Warp::template wait_products<0>();
      settle(sums_);
      PVT_UNROLL for (int s = 0; s < 2; ++s) round<scalar_t>(hidden[s], active[s]);
    }
    begin_products(sums_, active[0], active[1]);
    multiply_blocks<scalar_t>(sums_, active[0], active[1], Warp::after(slot, Config::kWeightBytes));
    Warp::commit_products();
    Warp::template wait_products<0>();
    settle(sums_);
  }

  PVT_DEVICE void store() {
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      Strip<Warp> strip[1] = {sums_[s]};
      add_strip<scalar_t>(args_.x, rows_, s, strip);
    }
  }

 private:
  PVT_DEVICE void activate(Strip<Warp> (&hidden)[2], int chunk) {
    settle(hidden);
    add_bias(hidden, args_.fc1_bias + chunk * kBlock);
    PVT_UNROLL for (int s = 0; s < 2; ++s) apply_gelu<scalar_t>(hidden[s]);
    settle(hidden);  // before the next wait
  }

  const MlpBlockArgs& args_;
  AdjacentRows<Warp> rows_{0, 0, Config::C};
  Operand<Warp> tokens_[kStrips];
  Strip<Warp> sums_[kStrips];
};

// A block takes kRows tokens, and weights pass by.
template <class Config, class Block>
PVT_DEVICE void mlp_warpgroup(Block& block, const MlpWarpgroupArgs& args) {
  const int count = args.mlp.hidden / kBlock;
  const auto copy = [&](int chunk, char* slot) {
    copy_hidden_blocks<Config>(block, args, chunk, slot);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy), /*kInUse=*/2> chunks(
      block, count, copy);
  MlpWarpgroupRows<Config, typename Block::Warp> rows(args.mlp);
  rows.load((block.index() * Config::kWarps + block.warp()) * kTile);
  rows.add_hidden(count, chunks);
  rows.store();
}

// All weights stay with a block, and tokens pass by: its warpgroups go their own ways. For hidden
// of at most kSlots * kBlock.
template <class Config, class Block>
PVT_DEVICE void mlp_warpgroup_staying(Block& block, const MlpWarpgroupArgs& args) {
  const int count = args.mlp.hidden / kBlock;
  const auto copy = [&](int chunk, char* slot) {
    copy_hidden_blocks<Config>(block, args, chunk, slot);
  };
  StayingChunks<Config::kSlotBytes, Block, decltype(copy)> chunks(block, count, copy);
  constexpr int kGroups = Config::kWarps / kGroupWarps;
  const int64_t tiles = (args.mlp.rows + kGroupRows - 1) / kGroupRows;
  MlpWarpgroupRows<Config, typename Block::Warp> rows(args.mlp);
  int64_t tile = block.index() * kGroups + block.warp() / kGroupWarps;
  PVT_NO_UNROLL for (; tile < tiles; tile += block.count() * kGroups) {
    rows.load(tile * kGroupRows + block.warp() % kGroupWarps * kTile);
    rows.add_hidden(count, chunks);
    rows.store();
  }
}

}  // namespace pvt::cuda
