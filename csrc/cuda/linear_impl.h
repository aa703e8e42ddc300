// A linear layer after a LayerNorm: of tokens, or of what convolve() left. The inputs of a row stay
// in registers, and weights pass by.
#pragma once

#include "cuda/chunks.h"
#include "cuda/results.h"

namespace pvt::cuda {

struct LinearArgs {
  const void* x;  // tokens [rows, C], or sums [splits, rows, C] in float32
  int64_t rows;
  int splits;                // of sums
  const float* sums_bias;    // [C], added to them
  const float* norm_weight;  // [C]
  const float* norm_bias;
  float eps;
  const char* weight;  // packed [columns, C]
  const float* bias;
  void* out;  // [rows, columns]
  int columns;
  int block_columns;  // of a block, a multiple of kColumns
};

enum class Source {
  kTokens,
  kSums,
  kActiveSums,  // sums with a GELU after their norm
};

// Weights come kDepth inputs of 64 columns at a time.
template <class scalar_t_, int C_, Source kSource_, Then kThen_, int kWarps_, int kDepth_,
          int kSlots_>
struct LinearConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr Source kSource = kSource_;
  static constexpr Then kThen = kThen_;
  static constexpr int kColumns = 64, kColumnStrips = kColumns / kStrip, kRows = kTile * kWarps;
  static constexpr int kParts = C / kDepth_, kPartStrips = kDepth_ / kStrip;
  static constexpr int kSlotBytes = kColumnStrips * kPartStrips * kSquare;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
  static constexpr int kBlocks = C <= 160 ? 3 : 2;  // that a multiprocessor has registers for
};

// LayerNorm of bias + the sum of all splits, in the order of the splits, as operands. kActive: and
// a GELU after that.
template <class scalar_t, bool kActive, class Warp, int kStrips>
PVT_DEVICE void load_sums(const LinearArgs& args, int64_t first,
                          Operand<Warp> (&operands)[kStrips][1]) {
  constexpr int C = kStrips * kStrip;
  const auto lane = Warp::lane();
  Strip<Warp> strips[kStrips][1];
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    strips[s][0] = bias_strip<Warp>(args.sums_bias + s * kStrip);
  }
  const auto add = [&](int split) {
    const float* x = static_cast<const float*>(args.x) + split * args.rows * C;
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      const auto row = first + 8 * half + (lane >> 2);
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        add_floats(x, row * int64_t{C} + ((lane & 3) << 3) + s * kStrip, row < args.rows, half,
                   strips[s][0]);
      }
    }
  };
  // Several at a time: their loads do not wait for each other.
  constexpr int kAtOnce = kStrips <= 2 ? 4 : kStrips <= 5 ? 2 : 1;
  int split = 0;
  PVT_NO_UNROLL for (; split + kAtOnce <= args.splits; split += kAtOnce) {
    PVT_UNROLL for (int i = 0; i < kAtOnce; ++i) add(split + i);
  }
  PVT_NO_UNROLL for (; split < args.splits; ++split) add(split);
  normalise(strips, args.norm_weight, args.norm_bias, args.eps);
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    if constexpr (kActive)
      apply_gelu<scalar_t>(strips[s][0]);
    round<scalar_t>(strips[s][0], operands[s][0]);
  }
}

// A block has kRows rows and block_columns columns. Block index: [row group][column group].
template <class Config, class Block>
PVT_DEVICE void linear(Block& block, const LinearArgs& args) {
  using Warp = typename Block::Warp;
  using scalar_t = typename Config::scalar_t;
  constexpr int kStrips = Config::C / kStrip, kColumnStrips = Config::kColumnStrips;
  constexpr int kPanelBytes = Config::C / 2 * kPanelLine;
  const int groups = (args.columns + args.block_columns - 1) / args.block_columns;
  const int begin = static_cast<int>(block.index() % groups) * args.block_columns;
  const int left = args.columns - begin;
  const int parts = (left < args.block_columns ? left : args.block_columns) / Config::kColumns;
  const int64_t first = block.index() / groups * Config::kRows + block.warp() * kTile;

  const char* weight = args.weight + int64_t{begin / kPanel} * kPanelBytes;
  const auto copy = [&](int chunk, char* slot) {
    const int columns = chunk / Config::kParts, part = chunk % Config::kParts;
    copy_squares<kColumnStrips, Config::kPartStrips>(
        block, slot,
        weight + int64_t{columns} * (Config::kColumns / kPanel * kPanelBytes) +
            part * (Config::kPartStrips * kStrip / 2 * kPanelLine),
        kPanelBytes);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(
      block, parts * Config::kParts, copy);

  Operand<Warp> tokens[kStrips][1];
  if constexpr (Config::kSource != Source::kTokens) {
    load_sums<scalar_t, Config::kSource == Source::kActiveSums>(args, first, tokens);
  } else {
    each_normalised<scalar_t, kStrips, Warp, 1>(
        args.x, AdjacentRows<Warp>{first, args.rows, Config::C}, args.norm_weight, args.norm_bias,
        args.eps, [&](int s, const Operand<Warp>(&token)[1]) { tokens[s][0] = token[0]; });
  }
  const SquareReader<Warp> reader;
  const AdjacentRows<Warp> rows{first, args.rows, args.columns};
  PVT_NO_UNROLL for (int columns = 0; columns < parts; ++columns) {
    const int column = begin + columns * Config::kColumns;
    Strip<Warp> sums[kColumnStrips][1];
    PVT_UNROLL for (int s = 0; s < kColumnStrips; ++s) {
      sums[s][0] = bias_strip<Warp>(args.bias + column + s * kStrip);
    }
    PVT_UNROLL for (int part = 0; part < Config::kParts; ++part) {
      const char* squares = chunks.next();
      PVT_UNROLL for (int step = 0; step < Config::kPartStrips; ++step) {
        PVT_UNROLL for (int s = 0; s < kColumnStrips; ++s) {
          reader.template multiply<scalar_t>(sums[s], tokens[part * Config::kPartStrips + step],
                                             squares + (s * Config::kPartStrips + step) * kSquare);
        }
      }
    }
    PVT_UNROLL for (int s = 0; s < kColumnStrips; ++s) {
      put_strip<scalar_t, Config::kThen>(args.out, rows, column / kStrip + s, sums[s]);
    }
  }
}

}  // namespace pvt::cuda
