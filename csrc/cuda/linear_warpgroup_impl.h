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
constexpr Follow kStayingFollow = Follow::kInputs, kPassingFollow = Follow::kColumns;

// What becomes of the sums of 64 columns at a time, of kColumns if they are known.
template <class scalar_t, Then kThen, class Warp, int kColumns = 0>
class BlockResults {
 public:
  // Of column `first` and on.
  PVT_DEVICE BlockResults(void* out, const AdjacentRows<Warp>& rows, const float* bias, int first)
      : out_(out), rows_(rows), bias_(bias + first), first_(first / kStrip) {}

  // Loads what they are added to, while they are computed.
  PVT_DEVICE void begin(int block) {
    if constexpr (kThen == Then::kAdd) {
      PVT_UNROLL for (int s = 0; s < 2; ++s) load_strip(out_, rows(), strip(block) + s, before_[s]);
    }
  }
  PVT_DEVICE void put(Strip<Warp> (&sums)[2], int block) {
    add_bias(sums, bias_ + block * kBlock);
    PVT_UNROLL for (int s = 0; s < 2; ++s) {
      Strip<Warp> one[1] = {sums[s]};
      if constexpr (kThen == Then::kAdd) {
        add_operands<scalar_t>(one, before_[s]);
        store_strip<scalar_t>(out_, rows(), strip(block) + s, one);
      } else {
        put_strip<scalar_t, kThen>(out_, rows(), strip(block) + s, one);
      }
    }
  }

 private:
  PVT_DEVICE int strip(int block) const { return first_ + block * (kBlock / kStrip); }
  PVT_DEVICE AdjacentRows<Warp> rows() const {
    // What follows from columns is computed anew each time, rather than kept in registers.
    return {rows_.first, rows_.rows, kColumns > 0 ? kColumns : Warp::opaque(rows_.C)};
  }

  void* out_;
  AdjacentRows<Warp> rows_;
  const float* bias_;
  int first_;
  Operand<Warp> before_[2][1];
};

// The products of tokens with `count` chunks of 64 columns.
//   kTwo: whether there are registers for the sums of two, one of which is put while the other is
//   multiplied
template <class scalar_t, bool kTwo, class Warp, int kStrips, class Chunks, class Results>
PVT_DEVICE void multiply_columns(const Operand<Warp> (&tokens)[kStrips], Chunks& chunks, int count,
                                 Results& results) {
  using Sums = Strip<Warp>[2];
  const auto multiply = [&](Sums& sums) {
    const auto blocks = Warp::blocks(chunks.next());
    Warp::begin_products();
    multiply_tokens<scalar_t>(sums, tokens, blocks);
    Warp::commit_products();
  };
  const auto put = [&](Sums& sums, int chunk) {
    settle(sums);
    results.put(sums, chunk);
  };
  int chunk = 0;
  if constexpr (kTwo) {
    Sums sums, others;
    multiply(sums);
    PVT_NO_UNROLL for (; chunk + 2 < count; chunk += 2) {
      multiply(others);
      results.begin(chunk);
      Warp::template wait_products<1>();
      put(sums, chunk);
      multiply(sums);
      results.begin(chunk + 1);
      Warp::template wait_products<1>();
      put(others, chunk + 1);
    }
    if (chunk + 1 < count) {
      multiply(others);
      results.begin(chunk);
      Warp::template wait_products<1>();
      put(sums, chunk);
      results.begin(chunk + 1);
      Warp::template wait_products<0>();
      put(others, chunk + 1);
    } else {
      results.begin(chunk);
      Warp::template wait_products<0>();
      put(sums, chunk);
    }
  } else {
    PVT_NO_UNROLL for (; chunk < count; ++chunk) {
      Sums sums;
      multiply(sums);
      results.begin(chunk);
      Warp::template wait_products<0>();
      put(sums, chunk);
    }
  }
}

// strips += the products of parts, of which kHeld are in registers: one is multiplied while the
// next is made ready.
//   parts.load(number, part): starts to load one   parts.prepare(number, part): in their order
template <class scalar_t, int kHeld, class Parts, class Chunks, class Warp, int kStrips>
PVT_DEVICE void multiply_parts(Parts& parts, Chunks& chunks, Strip<Warp> (&strips)[kStrips]) {
  typename Parts::Part held[kHeld];
  const auto multiply = [&](int number, int place) {
    auto& part = held[place];
    parts.prepare(number, part);
    const auto blocks = Warp::blocks(chunks.next());
    PVT_UNROLL for (int s = 0; s < Parts::kStrips; ++s) Warp::settle(part[s][0].step);
    Warp::begin_products();
    PVT_UNROLL for (int s = 0; s < Parts::kStrips; s += 2) {
      multiply_blocks<scalar_t>(strips, part[s][0], part[s + 1][0],
                                Warp::after(blocks, s / 2 * (kStrips / 2 * kBlockBytes)));
    }
    Warp::commit_products();
    Warp::template wait_products<1>();  // for those of the part before, whose place the next takes
    parts.load(number + kHeld - 1, held[(place + kHeld - 1) % kHeld]);
  };
  PVT_UNROLL for (int part = 0; part < kHeld - 1; ++part) parts.load(part, held[part]);
  settle(strips);
  int number = 0;
  PVT_NO_UNROLL for (; number + kHeld <= parts.count(); number += kHeld) {
    PVT_UNROLL for (int place = 0; place < kHeld; ++place) multiply(number + place, place);
  }
  PVT_UNROLL for (int place = 0; place < kHeld - 1; ++place) {
    if (number + place < parts.count())
      multiply(number + place, place);
  }
  Warp::template wait_products<0>();
  settle(strips);
}

// ---- after a LayerNorm, of C inputs ----

template <class scalar_t_, int C_, Then kThen_, int kWarps_, int kSlots_>
struct StayingLinearConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr Then kThen = kThen_;
  static constexpr int kRows = kWarps * kTile, kColumns = kBlock;
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
  settle(tokens);
  BlockResults<scalar_t, Config::kThen, Warp> results(
      args.out, AdjacentRows<Warp>{first, args.rows, args.columns}, args.bias, begin);
  multiply_columns<scalar_t, /*kTwo=*/true>(tokens, chunks, count, results);
}

// ---- of any number of inputs, a multiple of 64 ----

// A block has 64 kBlocks columns.
template <class scalar_t_, Then kThen_, int kBlocks_, int kWarps_, int kSlots_>
struct PassingLinearConfig {
  using scalar_t = scalar_t_;
  static constexpr Then kThen = kThen_;
  static constexpr int kBlocks = kBlocks_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr int kRows = kWarps * kTile, kColumns = kBlocks * kBlock;
  static constexpr int kHeld = kBlocks > 4 ? 2 : 3;  // what sums leave registers for
  static constexpr int kSlotBytes = kBlocks * kBlockBytes;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
};

// Inputs of 16 rows, 64 at a time; beyond the last they are the last again.
template <class Warp>
class RowParts {
 public:
  static constexpr int kStrips = 2;
  using Part = Operand<Warp>[kStrips][1];

  PVT_DEVICE RowParts(const void* x, const AdjacentRows<Warp>& rows) : x_(x), rows_(rows) {}
  PVT_DEVICE int count() const { return rows_.C / kBlock; }
  PVT_DEVICE void load(int number, Part& part) const {
    number = number < count() ? number : count() - 1;
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) load_strip(x_, rows_, 2 * number + s, part[s]);
  }
  PVT_DEVICE void prepare(int /*number*/, Part& /*part*/) const {}

 private:
  const void* x_;
  AdjacentRows<Warp> rows_;
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

  const char* weight = args.weight + int64_t{begin / kBlock} * kBlockBytes;
  const int64_t line = int64_t{args.columns / kBlock} * kBlockBytes;
  const auto copy = [&](int chunk, char* slot) {
    block.template copy_piece<Config::kSlotBytes>(slot, weight + chunk * line);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy), /*kInUse=*/2> chunks(
      block, args.depth / kBlock, copy);
  Strip<Warp> sums[kStrips];
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    sums[s] = bias_strip<Warp>(args.bias + begin + s * kStrip);
  }
  RowParts<Warp> parts(args.x, AdjacentRows<Warp>{first, args.rows, args.depth});
  multiply_parts<scalar_t, Config::kHeld>(parts, chunks, sums);
  const AdjacentRows<Warp> results{first, args.rows, Warp::opaque(args.columns)};
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    Strip<Warp> strip[1] = {sums[s]};
    put_strip<scalar_t, Config::kThen>(args.out, results, begin / kStrip + s, strip);
  }
}

}  // namespace pvt::cuda
