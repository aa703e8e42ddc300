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
  // Whether there are registers for two chunks of the hidden layer. Then fc2 of a chunk is waited
  // for before the fourth call of next() after the chunk's own.
  static constexpr bool kAhead = kWarps <= 8;
  static constexpr int kInUse = kAhead ? 4 : 2;
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
    settle(tokens_);
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      sums_[s] = bias_strip<Warp>(args_.fc2_bias + s * kStrip);
    }
  }

  // Adds what `count` chunks of hidden channels contribute.
  template <class Chunks>
  PVT_DEVICE void add_hidden(int count, Chunks& chunks) {
    if constexpr (Config::kAhead) {
      add_ahead(count, chunks);
    } else {
      add_in_turn(count, chunks);
    }
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
  using Hidden = Strip<Warp>[2];
  using Active = Operand<Warp>[2];

  // GELU of a chunk is computed while fc2 multiplies the one before.
  template <class Chunks>
  PVT_DEVICE void add_in_turn(int count, Chunks& chunks) {
    Hidden hidden;
    Active active;
    auto slot = Warp::blocks(chunks.next());
    begin_fc1(hidden, slot);
    Warp::template wait_products<0>();
    gelu(hidden, 0);
    round(hidden, active);
    PVT_NO_UNROLL for (int chunk = 1; chunk < count; ++chunk) {
      const auto before = slot;
      slot = Warp::blocks(chunks.next());
      settle(sums_);
      begin_fc1(hidden, slot);
      begin_fc2(active, before);
      Warp::template wait_products<1>();
      gelu(hidden, chunk);
      Warp::template wait_products<0>();
      settle(sums_);
      round(hidden, active);
    }
    begin_fc2(active, slot);
  }

  // GELU of a chunk is computed while fc1 multiplies the next one, and fc2 the one before.
  template <class Chunks>
  PVT_DEVICE void add_ahead(int count, Chunks& chunks) {
    Hidden hidden[2];
    Active active[2];
    typename Warp::Blocks slots[2];
    const auto begin = [&](int place) {
      slots[place] = Warp::blocks(chunks.next());
      begin_fc1(hidden[place], slots[place]);
    };
    const auto finish = [&](int chunk, int place) {
      gelu(hidden[place], chunk);
      round(hidden[place], active[place]);
      begin_fc2(active[place], slots[place]);
    };
    settle(sums_);
    begin(0);
    Warp::commit_products();  // in the place of fc2 of a chunk before the first
    int chunk = 0;
    PVT_NO_UNROLL for (; chunk + 2 < count; chunk += 2) {
      PVT_UNROLL for (int place = 0; place < 2; ++place) {
        begin(1 - place);
        Warp::template wait_products<2>();
        finish(chunk + place, place);
      }
    }
    if (chunk + 1 < count) {
      begin(1);
      Warp::template wait_products<2>();
      finish(chunk, 0);
      ++chunk;
      Warp::template wait_products<1>();
      finish(chunk, 1);
    } else {
      Warp::template wait_products<1>();
      finish(chunk, 0);
    }
  }

  PVT_DEVICE void begin_fc1(Hidden& hidden, typename Warp::Blocks slot) const {
    Warp::begin_products();
    multiply_tokens<scalar_t>(hidden, tokens_, slot);
    Warp::commit_products();
  }
  PVT_DEVICE void begin_fc2(Active& active, typename Warp::Blocks slot) {
    begin_products<Warp>(active[0], active[1]);
    multiply_blocks<scalar_t>(sums_, active[0], active[1], Warp::after(slot, Config::kWeightBytes));
    Warp::commit_products();
  }

  PVT_DEVICE void gelu(Hidden& hidden, int chunk) const {
    settle(hidden);
    add_bias(hidden, args_.fc1_bias + chunk * kBlock);
    PVT_UNROLL for (int s = 0; s < 2; ++s) apply_gelu<scalar_t>(hidden[s]);
    settle(hidden);  // before the next wait
  }
  static PVT_DEVICE void round(Hidden& hidden, Active& active) {
    PVT_UNROLL for (int s = 0; s < 2; ++s) pvt::cuda::round<scalar_t>(hidden[s], active[s]);
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
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy), Config::kInUse> chunks(
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
