// The body of attention_block_: x <- x + proj(attention(q(LayerNorm(x)), kv)). A warp has 16 tokens
// of an image; scores are never in memory, and nothing is transposed.
#pragma once

#include "cuda/chunks.h"
#include "cuda/keys.h"
#include "cuda/tokens.h"

namespace pvt::cuda {

struct AttentionBlockArgs {
  void* x;  // [B, N, C]
  int64_t N;
  const float* norm_weight;
  const float* norm_bias;
  float eps;
  const char* q_weight;  // packed [C, C]
  const float* q_bias;
  KeyValues kv;
  const char* proj_weight;  // packed [C, C]
  const float* proj_bias;
  float scale;  // of the scores, times log2(e)
  int blocks_per_image;
};

// Weights come kDepth inputs of a head's channels at a time, keys and values 64 at a time.
template <class scalar_t_, int C_, int kHeadDim_, int kWarps_, int kDepth_, int kSlots_>
struct AttentionBlockConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kHeadDim = kHeadDim_, kWarps = kWarps_, kDepth = kDepth_;
  static constexpr int kSlots = kSlots_;
  static constexpr int kHeads = C / kHeadDim, kParts = C / kDepth;
  static constexpr int kStrips = C / kStrip, kHeadStrips = kHeadDim / kStrip;
  static constexpr int kPartStrips = kDepth / kStrip;
  static constexpr int kRows = kTile * kWarps;

  static constexpr int kWeightBytes = kHeadDim * kDepth * 2;
  static constexpr int kSlotBytes =
      kWeightBytes > kKeyBytes<kHeadDim> ? kWeightBytes : kKeyBytes<kHeadDim>;
  // Beside one head's sums a thread has registers for the operands of so many channels; those of
  // more are kept in shared memory.
  static constexpr bool kParked = C > 128;
  static constexpr int kParkedBytes = kParked ? kStrips * kOperandBytes : 0;  // of a warp
  static constexpr int kSharedBytes = kSlots * kSlotBytes + kWarps * kParkedBytes;
};

// Starts the copies of a block in the order in which they are used: q's weight, as many columns at
// a time as a head; for every head keys and values; the projection's weight as q's.
template <class Config, class Block>
class AttentionCopies {
 public:
  PVT_DEVICE AttentionCopies(Block& block, const AttentionBlockArgs& args, int64_t image)
      : block_(block), args_(args), image_(image) {}

  PVT_DEVICE int count() const { return 2 * kWeightChunks + Config::kHeads * args_.kv.blocks(); }

  PVT_DEVICE void operator()(int chunk, char* slot) const {
    const int keys = chunk - kWeightChunks, end = Config::kHeads * args_.kv.blocks();
    if (keys < 0) {
      copy_weight<Inputs::kAdjacent>(args_.q_weight, chunk, slot);
    } else if (keys < end) {
      const int head = keys / args_.kv.blocks();
      copy_keys<Config::kHeadDim>(block_, slot, args_.kv, image_, head,
                                  keys - head * args_.kv.blocks());
    } else {
      copy_weight<Inputs::kSpread>(args_.proj_weight, keys - end, slot);
    }
  }

 private:
  static constexpr int kWeightChunks = Config::kHeads * Config::kParts;

  // Inputs [kDepth * part, kDepth * (part + 1)) of a head's number of columns; all parts of these,
  // then the next columns.
  template <Inputs kInputs>
  PVT_DEVICE void copy_weight(const char* weight, int chunk, char* slot) const {
    constexpr int kPanelBytes = Config::C / 2 * kPanelLine;
    const int columns = chunk / Config::kParts, part = chunk % Config::kParts;
    copy_squares<Config::kHeadStrips, Config::kPartStrips, kInputs>(
        block_, slot,
        weight + columns * (Config::kHeadDim / kPanel) * kPanelBytes +
            part * (Config::kDepth / 2 * kPanelLine),
        kPanelBytes);
  }

  Block& block_;
  const AttentionBlockArgs& args_;
  int64_t image_;
};

// Calls visit(0) .. visit(kCount - 1).
template <bool kUnrolled, int kCount, class Visit>
PVT_DEVICE void repeat(const Visit& visit) {
  if constexpr (kUnrolled) {
    PVT_UNROLL for (int i = 0; i < kCount; ++i) visit(i);
  } else {
    PVT_NO_UNROLL for (int i = 0; i < kCount; ++i) visit(i);
  }
}

// What a warp has of every head: its queries, then what these attended to. In registers, where
// every index has to be a constant, or in shared memory.
template <class Config, class Warp>
class Heads {
 public:
  static constexpr int kHeadStrips = Config::kHeadStrips;
  using Operands = Operand<Warp>[kHeadStrips][1];

  PVT_DEVICE explicit Heads(char* parked) : parked_(parked) {}

  template <class Visit>
  static PVT_DEVICE void each(const Visit& visit) {
    repeat<!Config::kParked, Config::kHeads>(visit);
  }

  // Calls change(operands) for a head's.
  template <class Change>
  PVT_DEVICE void change(int head, const Change& change) {
    if constexpr (Config::kParked) {
      Operands operands;
      PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
        operands[s][0] = strip(head * kHeadStrips + s);
      }
      change(operands);
      set(head, operands);
    } else {
      change(operands_[head]);
    }
  }
  PVT_DEVICE void set(int head, Operands& operands) {
    PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
      if constexpr (Config::kParked) {
        store_operand<Warp>(parked_ + (head * kHeadStrips + s) * kOperandBytes, operands[s][0]);
      } else {
        operands_[head][s][0] = operands[s][0];
      }
    }
  }
  PVT_DEVICE Operand<Warp> strip(int s) const {
    if constexpr (Config::kParked) {
      return load_operand<Warp>(parked_ + s * kOperandBytes);
    } else {
      return operands_[s / kHeadStrips][s % kHeadStrips][0];
    }
  }

 private:
  char* parked_;
  Operands operands_[Config::kParked ? 1 : Config::kHeads];
};

// 16 tokens of a warp.
template <class Config, class Warp>
class AttentionRows {
 public:
  using scalar_t = typename Config::scalar_t;
  static constexpr int kHeadStrips = Config::kHeadStrips, kPartStrips = Config::kPartStrips;

  PVT_DEVICE AttentionRows(const AttentionBlockArgs& args, int64_t image, int64_t first)
      : args_(args),
        x_(static_cast<char*>(args.x) + image * args.N * int64_t{2 * Config::C}),
        rows_{first, args.N, Config::C},
        any_(first < args.N) {}

  // heads <- their queries, times the scale.
  template <class Chunks>
  PVT_DEVICE void query(Chunks& chunks, Heads<Config, Warp>& heads) const {
    Operand<Warp> tokens[Config::kStrips][1];
    each_normalised<scalar_t, Config::kStrips, Warp, 1>(
        x_, rows_, args_.norm_weight, args_.norm_bias, args_.eps,
        [&](int s, Operand<Warp>(&token)[1]) { tokens[s][0] = token[0]; });
    heads.each([&](int head) {
      Sums sums;
      multiply<true>(args_.q_bias + head * Config::kHeadDim, chunks, sums,
                     [&](int s) -> const Operand<Warp>& { return tokens[s][0]; });
      typename Heads<Config, Warp>::Operands queries;
      PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
        PVT_UNROLL for (int j = 0; j < 4; ++j) {
          PVT_UNROLL for (int i = 0; i < 4; ++i) {
            sums[s][0].sum[j][i] = sums[s][0].sum[j][i] * typename Warp::Float(args_.scale);
          }
        }
        round<scalar_t>(sums[s][0], queries[s][0]);
      }
      heads.set(head, queries);
    });
  }

  // x <- x + proj(heads)
  template <class Chunks>
  PVT_DEVICE void project(Chunks& chunks, const Heads<Config, Warp>& heads) const {
    PVT_NO_UNROLL for (int columns = 0; columns < Config::kHeads; ++columns) {
      Sums sums;
      multiply<!Config::kParked>(args_.proj_bias + columns * Config::kHeadDim, chunks, sums,
                                 [&](int s) { return heads.strip(s); });
      PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
        add_strip<scalar_t>(x_, rows_, columns * kHeadStrips + s, sums[s]);
      }
    }
  }

 private:
  using Sums = Strip<Warp>[kHeadStrips][1];

  // sums <- bias + inputs * weight, a head's number of columns
  template <bool kUnrolled, class Chunks, class Input>
  PVT_DEVICE void multiply(const float* bias, Chunks& chunks, Sums& sums,
                           const Input& input) const {
    PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
      sums[s][0] = bias_strip<Warp>(bias + s * kStrip);
    }
    repeat<kUnrolled, Config::kParts>([&](int part) {
      const char* weight = chunks.next();
      if (!any_)
        return;
      PVT_UNROLL for (int step = 0; step < kPartStrips; ++step) {
        const Operand<Warp> operand[1] = {input(part * kPartStrips + step)};
        PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
          reader_.template multiply<scalar_t>(sums[s], operand,
                                              weight + (s * kPartStrips + step) * kSquare);
        }
      }
    });
  }

  const AttentionBlockArgs& args_;
  char* x_;
  AdjacentRows<Warp> rows_;
  bool any_;  // of the rows exists
  SquareReader<Warp> reader_;
};

// A block takes kRows tokens of one image.
template <class Config, class Block>
PVT_DEVICE void attention_block(Block& block, const AttentionBlockArgs& args) {
  using Warp = typename Block::Warp;
  const int index = static_cast<int>(block.index()), image = index / args.blocks_per_image;
  const int64_t first =
      int64_t{index - image * args.blocks_per_image} * Config::kRows + block.warp() * kTile;
  const AttentionCopies<Config, Block> copy(block, args, image);
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(
      block, copy.count(), copy);
  const AttentionRows<Config, Warp> rows(args, image, first);
  Heads<Config, Warp> heads(block.shared() + Config::kSlots * Config::kSlotBytes +
                            block.warp() * Config::kParkedBytes);
  rows.query(chunks, heads);
  heads.each([&](int head) {
    heads.change(head, [&](auto& operands) {
      attend<typename Config::scalar_t, Config::kHeadDim, Warp>(
          operands, args.kv, chunks, [](const auto& difference) { return difference; }, operands);
    });
  });
  rows.project(chunks, heads);
}

}  // namespace pvt::cuda
