// Linear layers of many rows for warpgroups: inputs that stay in registers while columns pass by,
// or sums that stay while inputs do.
#pragma once

#include "cuda/results.h"
#include "cuda/streamed_linear_impl.h"
#include "cuda/warpgroup.h"

namespace pvt::cuda {

// As StreamedLinearArgs, whose weight is in blocks: those of all inputs follow each other for
// staying_linear(), those of all columns for passing_linear().
using WarpgroupLinearArgs = StreamedLinearArgs;

// out <- the sums of 64 columns, with their bias.
template <class scalar_t, Then kThen, class Warp>
PVT_DEVICE void put_block(void* out, const AdjacentRows<Warp>& rows, int column, const float* bias,
                          Strip<Warp> (&sums)[2]) {
  settle(sums);
  add_bias(sums, bias + column);
  PVT_UNROLL for (int s = 0; s < 2; ++s) {
    Strip<Warp> strip[1] = {sums[s]};
    put_strip<scalar_t, kThen>(out, rows, column / kStrip + s, strip);
  }
}

// The products of tokens with `count` chunks of 64 columns: put(sums, chunk)
//   kTwo: whether there are registers for the sums of two, one of which is put while the other is
//   multiplied
template <class scalar_t, bool kTwo, class Warp, int kStrips, class Chunks, class Put>
PVT_DEVICE void multiply_columns(const Operand<Warp> (&tokens)[kStrips], Chunks& chunks, int count,
                                 const Put& put) {
  const auto multiply = [&](Strip<Warp>(&sums)[2]) {
    const auto blocks = Warp::blocks(chunks.next());
    Warp::begin_products();
    multiply_tokens<scalar_t>(sums, tokens, blocks);
    Warp::commit_products();
  };
  int chunk = 0;
  if constexpr (kTwo) {
    PVT_NO_UNROLL for (; chunk + 1 < count; chunk += 2) {
      Strip<Warp> sums[2], next[2];
      multiply(sums);
      multiply(next);
      Warp::template wait_products<1>();
      put(sums, chunk);
      Warp::template wait_products<0>();
      put(next, chunk + 1);
    }
  }
  PVT_NO_UNROLL for (; chunk < count; ++chunk) {
    Strip<Warp> sums[2];
    multiply(sums);
    Warp::template wait_products<0>();
    put(sums, chunk);
  }
}

// ---- after a LayerNorm, of C inputs ----

template <class scalar_t_, int C_, Then kThen_, int kWarps_, int kSlots_>
struct StayingLinearConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr Then kThen = kThen_;
  static constexpr Follow kFollow = Follow::kInputs;
  static constexpr int kRows = kWarps * kTile, kColumns = kBlock;
  static constexpr bool kTwo = C <= 320;
  static constexpr int kSlotBytes = C / kBlock * kBlockBytes;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
};

// Block index: [row group][column group].
template <class Config, class Block>
PVT_DEVICE void staying_linear(Block& block, const WarpgroupLinearArgs& args) {
  using Warp = typename Block::Warp;
  using scalar_t = typename Config::scalar_t;
  constexpr int kStrips = Config::C / kStrip;
  const int groups = (args.columns + args.block_columns - 1) / args.block_columns;
  const int begin = static_cast<int>(block.index() % groups) * args.block_columns;
  const int left = args.columns - begin;
  const int count = (left < args.block_columns ? left : args.block_columns) / kBlock;
  const int64_t first = block.index() / groups * Config::kRows + block.warp() * kTile;

  const char* weight = args.weight + int64_t{begin / kBlock} * Config::kSlotBytes;
  const auto copy = [&](int chunk, char* slot) {
    block.template copy_piece<Config::kSlotBytes>(slot,
                                                  weight + int64_t{chunk} * Config::kSlotBytes);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy), /*kInUse=*/2> chunks(
      block, count, copy);
  Operand<Warp> tokens[kStrips];
  each_normalised<scalar_t, kStrips, Warp, 1>(
      args.x, AdjacentRows<Warp>{first, args.rows, Config::C}, args.norm_weight, args.norm_bias,
      args.eps, [&](int s, Operand<Warp>(&token)[1]) { tokens[s] = token[0]; });
  multiply_columns<scalar_t, Config::kTwo>(
      tokens, chunks, count, [&](Strip<Warp>(&sums)[2], int chunk) {
        const AdjacentRows<Warp> results{first, args.rows, Warp::opaque(args.columns)};
        put_block<scalar_t, Config::kThen>(args.out, results, begin + chunk * kBlock, args.bias,
                                           sums);
      });
}

// ---- of any number of inputs, a multiple of 64 ----

// A block has 64 kBlocks columns.
template <class scalar_t_, Then kThen_, int kBlocks_, int kWarps_, int kSlots_>
struct PassingLinearConfig {
  using scalar_t = scalar_t_;
  static constexpr Then kThen = kThen_;
  static constexpr Follow kFollow = Follow::kColumns;
  static constexpr int kBlocks = kBlocks_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr int kRows = kWarps * kTile, kColumns = kBlocks * kBlock;
  static constexpr int kSlotBytes = kBlocks * kBlockBytes;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
};

// Block index: [row group][column group], of kColumns.
template <class Config, class Block>
PVT_DEVICE void passing_linear(Block& block, const WarpgroupLinearArgs& args) {
  using Warp = typename Block::Warp;
  using scalar_t = typename Config::scalar_t;
  constexpr int kStrips = Config::kColumns / kStrip;
  const int groups = args.columns / Config::kColumns;
  const int begin = static_cast<int>(block.index() % groups) * Config::kColumns;
  const int64_t first = block.index() / groups * Config::kRows + block.warp() * kTile;

  const int count = args.depth / kBlock;
  const char* weight = args.weight + int64_t{begin / kBlock} * kBlockBytes;
  const int64_t line = int64_t{args.columns / kBlock} * kBlockBytes;
  const auto copy = [&](int chunk, char* slot) {
    block.template copy_piece<Config::kSlotBytes>(slot, weight + chunk * line);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy), /*kInUse=*/2> chunks(
      block, count, copy);
  const AdjacentRows<Warp> rows{first, args.rows, args.depth};
  Operand<Warp> inputs[2][2][1];  // of two chunks: one arrives while the other is multiplied
  const auto load_chunk = [&](int chunk, Operand<Warp>(&strips)[2][1]) {
    PVT_UNROLL for (int s = 0; s < 2; ++s) load_strip(args.x, rows, 2 * chunk + s, strips[s]);
  };
  Strip<Warp> sums[kStrips];
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    sums[s] = bias_strip<Warp>(args.bias + begin + s * kStrip);
  }
  const auto multiply = [&](Operand<Warp>(&strips)[2][1]) {
    const auto blocks = Warp::blocks(chunks.next());
    begin_products(sums, strips[0][0], strips[1][0]);
    multiply_blocks<scalar_t>(sums, strips[0][0], strips[1][0], blocks);
    Warp::commit_products();
  };
  load_chunk(0, inputs[0]);
  int chunk = 0;
  PVT_NO_UNROLL for (; chunk + 1 < count; chunk += 2) {
    multiply(inputs[0]);
    load_chunk(chunk + 1, inputs[1]);
    multiply(inputs[1]);
    Warp::template wait_products<1>();
    load_chunk(chunk + 2 < count ? chunk + 2 : 0, inputs[0]);
    Warp::template wait_products<0>();
    settle(sums);
  }
  if (chunk < count) {
    multiply(inputs[0]);
    Warp::template wait_products<0>();
    settle(sums);
  }
  const AdjacentRows<Warp> results{first, args.rows, Warp::opaque(args.columns)};
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    Strip<Warp> strip[1] = {sums[s]};
    put_strip<scalar_t, Config::kThen>(args.out, results, begin / kStrip + s, strip);
  }
}

}  // namespace pvt::cuda
