// The body of mlp_block_: x <- x + fc2(gelu(fc1(LayerNorm(x)))). A warp has its tokens and sums in
// registers from the first load to the last store; the hidden layer is never in memory.
#pragma once

#include "cuda/chunks.h"
#include "cuda/gelu.h"
#include "cuda/tokens.h"

namespace pvt::cuda {

struct MlpBlockArgs {
  void* x;  // [rows, C]
  int64_t rows;
  const float* norm_weight;
  const float* norm_bias;
  float eps;
  const char* fc1_weight;  // packed [hidden, C]
  const float* fc1_bias;
  const char* fc2_weight;  // packed [C, hidden]
  const float* fc2_bias;
  int hidden;  // a multiple of kHidden
};

// kTiles tiles of rows per warp; weights come kHidden hidden channels at a time.
template <class scalar_t_, int C_, int kTiles_, int kWarps_, int kHidden_, int kSlots_>
struct MlpBlockConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kTiles = kTiles_, kWarps = kWarps_, kHidden = kHidden_;
  static constexpr int kSlots = kSlots_;
  static constexpr int kStrips = C / kStrip;

  // A slot: squares of fc1, squares of fc2, biases of fc1.
  static constexpr int kWeightBytes = kHidden * C * 2;
  static constexpr int kSlotBytes = 2 * kWeightBytes + kHidden * 4;
  static constexpr int kRows = kTiles * kTile * kWarps;
};

// Starts the copy of hidden channels [chunk * kHidden, (chunk + 1) * kHidden).
template <class Config, class Block>
PVT_DEVICE void copy_hidden(Block& block, const MlpBlockArgs& args, int chunk, char* slot) {
  constexpr int C = Config::C, kHidden = Config::kHidden;
  copy_squares<kHidden / kStrip, C / kStrip>(
      block, slot, args.fc1_weight + int64_t{chunk} * Config::kWeightBytes, C / 2 * kPanelLine);
  copy_squares<Config::kStrips, kHidden / kStrip>(
      block, slot + Config::kWeightBytes,
      args.fc2_weight + int64_t{chunk} * (kHidden / 2 * kPanelLine),
      int64_t{args.hidden} / 2 * kPanelLine);
  copy_bytes<kHidden * 4>(block, slot + 2 * Config::kWeightBytes, args.fc1_bias + chunk * kHidden);
}

// The tokens of a warp, as operands, and what is added to them.
template <class Config, class Warp>
class MlpRows {
 public:
  using scalar_t = typename Config::scalar_t;
  static constexpr int kTiles = Config::kTiles, kStrips = Config::kStrips;

  PVT_DEVICE MlpRows(const MlpBlockArgs& args, int64_t first)
      : args_(args), rows_{first, args.rows, Config::C} {}

  PVT_DEVICE void load() {
    each_normalised<scalar_t, kStrips, Warp, kTiles>(
        args_.x, rows_, args_.norm_weight, args_.norm_bias, args_.eps,
        [&](int s, Operand<Warp>(&tokens)[kTiles]) {
          PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) tokens_[s][tile] = tokens[tile];
        });
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      const Strip<Warp> bias = bias_strip<Warp>(args_.fc2_bias + s * kStrip);
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) sums_[s][tile] = bias;
    }
  }

  // Adds what the hidden channels in `slot` contribute.
  PVT_DEVICE void add_hidden(const char* slot) {
    const char* fc2 = slot + Config::kWeightBytes;
    const float* bias = reinterpret_cast<const float*>(slot + 2 * Config::kWeightBytes);
    PVT_NO_UNROLL for (int h = 0; h < Config::kHidden / kStrip; ++h) {
      Strip<Warp> hidden[kTiles];
      const char* fc1 = slot + h * kStrips * kSquare;
      reader_.template multiply<scalar_t>(hidden, bias_strip<Warp>(bias + h * kStrip), tokens_[0],
                                          fc1);
      PVT_UNROLL for (int s = 1; s < kStrips; ++s) {
        reader_.template multiply<scalar_t>(hidden, tokens_[s], fc1 + s * kSquare);
      }
      Operand<Warp> active[kTiles];
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        apply_gelu<scalar_t>(hidden[tile]);
        round<scalar_t>(hidden[tile], active[tile]);
      }
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        reader_.template multiply<scalar_t>(sums_[s], active,
                                            fc2 + (s * (Config::kHidden / kStrip) + h) * kSquare);
      }
    }
  }

  PVT_DEVICE void store() {
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      add_strip<scalar_t>(args_.x, rows_, s, sums_[s]);
    }
  }

 private:
  const MlpBlockArgs& args_;
  AdjacentRows<Warp> rows_;
  SquareReader<Warp> reader_;
  Operand<Warp> tokens_[kStrips][kTiles];
  Strip<Warp> sums_[kStrips][kTiles];
};

// A block takes kRows tokens, and weights pass by.
template <class Config, class Block>
PVT_DEVICE void mlp_block(Block& block, const MlpBlockArgs& args) {
  const int count = args.hidden / Config::kHidden;
  const auto copy = [&](int chunk, char* slot) { copy_hidden<Config>(block, args, chunk, slot); };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(block, count,
                                                                                  copy);
  const int64_t tile = block.index() * Config::kWarps + block.warp();
  MlpRows<Config, typename Block::Warp> rows(args, tile * (Config::kTiles * kTile));
  rows.load();
  PVT_NO_UNROLL for (int chunk = 0; chunk < count; ++chunk) rows.add_hidden(chunks.next());
  rows.store();
}

// All weights stay with a block, and tokens pass by: its warps go their own ways. For hidden of at
// most kSlots * kHidden.
template <class Config, class Block>
PVT_DEVICE void mlp_block_staying(Block& block, const MlpBlockArgs& args) {
  const int count = args.hidden / Config::kHidden;
  const auto copy = [&](int chunk, char* slot) { copy_hidden<Config>(block, args, chunk, slot); };
  StayingChunks<Config::kSlotBytes, Block, decltype(copy)> chunks(block, count, copy);
  constexpr int64_t kRows = Config::kTiles * kTile;  // of a warp
  const int64_t tiles = (args.rows + kRows - 1) / kRows;
  int64_t tile = block.index() * Config::kWarps + block.warp();
  PVT_NO_UNROLL for (; tile < tiles; tile += block.count() * Config::kWarps) {
    MlpRows<Config, typename Block::Warp> rows(args, tile * kRows);
    rows.load();
    PVT_NO_UNROLL for (int chunk = 0; chunk < count; ++chunk) rows.add_hidden(chunks.next());
    rows.store();
  }
}

}  // namespace pvt::cuda
