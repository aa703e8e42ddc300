// convolve() for warpgroups: of many patches. The inputs of a patch pass through registers while
// the sums of its columns stay there; weights are in blocks, those of all columns one after the
// other. Rows are finished where they are: as patch_embed does, or as keys and values.
#pragma once

#include "cuda/convolve_impl.h"
#include "cuda/linear_impl.h"
#include "cuda/linear_warpgroup_impl.h"

namespace pvt::cuda {

// A block has 64 kBlocks columns.
template <class scalar_t_, int C_, bool kNorm_, int kBlocks_, int kWarps_, int kSlots_>
struct WarpgroupConvolveConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kBlocks = kBlocks_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr bool kNorm = kNorm_;
  static constexpr Follow kFollow = kPassingFollow;
  static constexpr int kRows = kWarps * kTile, kColumns = kBlocks * kBlock;
  static constexpr int kStrips = kColumns / kStrip;
  // Inputs come a part of a token at a time: all of it where registers hold enough for its norm.
  static constexpr int kDepth = kNorm && C <= 128 ? C : kBlock;
  static constexpr int kParts = C / kDepth, kLines = kDepth / kBlock;
  // Parts in registers, where sums leave them: one is multiplied while others arrive.
  static constexpr int kHeld = kBlocks > 4 || kDepth > 64 ? 2 : 3;
  static constexpr int kLineBytes = kBlocks * kBlockBytes;
  static constexpr int kSlotBytes = kLines * kLineBytes;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
};

// Starts the copy of the weights of a part.
template <class Config, class Block>
PVT_DEVICE void copy_part(Block& block, const ConvolveArgs& args, int first_column, int part,
                          char* slot) {
  const int64_t line = int64_t{args.C_out / kBlock} * kBlockBytes;
  const char* const from = args.weight + int64_t{first_column / kBlock} * kBlockBytes;
  PVT_UNROLL for (int i = 0; i < Config::kLines; ++i) {
    block.template copy_piece<Config::kLineBytes>(
        slot + i * Config::kLineBytes, from + (int64_t{part} * Config::kLines + i) * line);
  }
}

// The inputs of 16 patches, a part of a token at a time.
template <class Config, class Warp>
class PatchParts {
 public:
  using scalar_t = typename Config::scalar_t;
  static constexpr int kStrips = Config::kDepth / kStrip, kParts = Config::kParts;
  using Part = Operand<Warp>[kStrips][1];

  PVT_DEVICE PatchParts(const ConvolveArgs& args, int64_t first) : args_(args), rows_(args, first) {
    rows_.move_to(0);
  }
  PVT_DEVICE int count() const { return args_.kernel_size * args_.kernel_size * kParts; }

  // As they are in memory; beyond the last it is the last again.
  PVT_DEVICE void load(int number, Part& part) {
    const int last = count() - 1;
    number = number < last ? number : last;
    rows_.move_to(number / kParts);
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      load_strip(args_.x, rows_, number % kParts * kStrips + s, part[s]);
    }
  }
  // The LayerNorm, in place.
  PVT_DEVICE void prepare(int number, Part& part) {
    if constexpr (Config::kNorm)
      normalise(number, part);
  }

 private:
  PVT_DEVICE void normalise(int number, Part& part) {
    if constexpr (kParts == 1) {
      norm_ = RowNorm<scalar_t, Warp, 1>(part, args_.eps);
    } else if (number % kParts == 0) {
      rows_.move_to(number / kParts);
      norm_ = RowNorm<scalar_t, Warp, 1>(args_.x, rows_, Config::C, args_.eps);
    }
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      const int channel = (number % kParts * kStrips + s) * kStrip;
      norm_.apply(args_.norm_weight + channel, args_.norm_bias + channel, part[s]);
    }
  }

  const ConvolveArgs& args_;
  PatchRows<Warp, 1> rows_;
  RowNorm<scalar_t, Warp, 1> norm_;
};

// sums = the products of patches `first` and on, of all inputs.
template <class Config, class Warp, class Chunks>
PVT_DEVICE void multiply_patches(const ConvolveArgs& args, int64_t first, Chunks& chunks,
                                 Strip<Warp> (&sums)[Config::kStrips][1]) {
  PatchParts<Config, Warp> parts(args, first);
  Strip<Warp> strips[Config::kStrips];
  PVT_UNROLL for (int s = 0; s < Config::kStrips; ++s) set_zero(strips[s]);
  multiply_parts<typename Config::scalar_t, Config::kHeld>(parts, chunks, strips);
  PVT_UNROLL for (int s = 0; s < Config::kStrips; ++s) sums[s][0] = strips[s];
}

// Block index: [row group][column group].
template <class Config, class Block>
PVT_DEVICE void convolve_warpgroup(Block& block, const ConvolveArgs& args) {
  using Warp = typename Block::Warp;
  const int groups = args.C_out / Config::kColumns;
  const int first_column = static_cast<int>(block.index() % groups) * Config::kColumns;
  const int64_t first = block.index() / groups * Config::kRows + block.warp() * kTile;
  const auto copy = [&](int chunk, char* slot) {
    copy_part<Config>(block, args, first_column, chunk, slot);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy), /*kInUse=*/2> chunks(
      block, args.kernel_size * args.kernel_size * Config::kParts, copy);
  Strip<Warp> sums[Config::kStrips][1];
  multiply_patches<Config>(args, first, chunks, sums);
  if (args.sums == nullptr) {
    finish_rows<typename Config::scalar_t>(args.end, first, args.rows, sums);
  } else {
    store_sums(args, /*split=*/0, first, first_column, sums);
  }
}

// Keys and values of the reduced grid, all in one kernel.
struct ReduceArgs {
  ConvolveArgs convolution;
  LinearArgs linear;  // of its sums; the weight in blocks, those of all inputs one after the other
};

// A block has all columns of its rows.
template <class Config, class Block>
PVT_DEVICE void reduce_warpgroup(Block& block, const ReduceArgs& args) {
  using Warp = typename Block::Warp;
  using scalar_t = typename Config::scalar_t;
  static_assert(Config::C == Config::kColumns, "all columns");
  const LinearArgs& linear = args.linear;
  const int positions = args.convolution.kernel_size * args.convolution.kernel_size;
  const int parts = positions * Config::kParts, blocks = linear.columns / kBlock;
  const int64_t first = block.index() * Config::kRows + block.warp() * kTile;
  const auto copy = [&](int chunk, char* slot) {
    constexpr int kBytes = Config::C / kBlock * kBlockBytes;
    static_assert(kBytes <= Config::kSlotBytes, "64 columns fit into a slot");
    if (chunk < parts) {
      copy_part<Config>(block, args.convolution, 0, chunk, slot);
    } else {
      block.template copy_piece<kBytes>(slot, linear.weight + int64_t{chunk - parts} * kBytes);
    }
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy), /*kInUse=*/2> chunks(
      block, parts + blocks, copy);
  Strip<Warp> sums[Config::kStrips][1];
  multiply_patches<Config>(args.convolution, first, chunks, sums);
  add_to_rows(sums, linear.sums_bias);
  normalise(sums, linear.norm_weight, linear.norm_bias, linear.eps);
  Operand<Warp> tokens[Config::kStrips];
  PVT_UNROLL for (int s = 0; s < Config::kStrips; ++s) round<scalar_t>(sums[s][0], tokens[s]);
  settle(tokens);
  BlockResults<scalar_t, Then::kStore, Warp, 2 * Config::C> results(
      linear.out, AdjacentRows<Warp>{first, linear.rows, linear.columns}, linear.bias,
      /*first=*/0);
  multiply_columns<scalar_t, /*kTwo=*/true>(tokens, chunks, blocks, results);
}

}  // namespace pvt::cuda
