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
  // Beside the heads' results a thread has registers for so many channels of its tokens; more are
  // kept in shared memory.
  static constexpr bool kParked = C > 160;
  static constexpr int kParkedBytes = kParked ? kStrips * kOperandBytes : 0;  // of a warp
  static constexpr int kSharedBytes = kSlots * kSlotBytes + kWarps * kParkedBytes;
};

// Starts the copies of a block in the order in which they are used: for every head its part of q's
// weight, then keys and values; then the projection's weight, as many columns at a time as a head.
template <class Config, class Block>
class AttentionCopies {
 public:
  PVT_DEVICE AttentionCopies(Block& block, const AttentionBlockArgs& args, int64_t image)
      : block_(block), args_(args), image_(image) {}

  PVT_DEVICE int count() const {
    return Config::kHeads * per_head() + Config::kHeads * Config::kParts;
  }

  PVT_DEVICE void operator()(int chunk, char* slot) const {
    const int head = chunk / per_head(), part = chunk - head * per_head();
    if (head >= Config::kHeads) {
      const int columns = chunk - Config::kHeads * per_head();
      copy_weight<Inputs::kSpread>(args_.proj_weight, columns / Config::kParts,
                                   columns % Config::kParts, slot);
    } else if (part < Config::kParts) {
      copy_weight<Inputs::kAdjacent>(args_.q_weight, head, part, slot);
    } else {
      copy_keys<Config::kHeadDim>(block_, slot, args_.kv, image_, head, part - Config::kParts);
    }
  }

 private:
  PVT_DEVICE int per_head() const { return Config::kParts + args_.kv.blocks(); }

  // Columns [kHeadDim * columns, kHeadDim * (columns + 1)), inputs [kDepth * part, ...).
  template <Inputs kInputs>
  PVT_DEVICE void copy_weight(const char* weight, int columns, int part, char* slot) const {
    constexpr int kPanelBytes = Config::C / 2 * kPanelLine;
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

// 16 tokens of a warp.
template <class Config, class Warp>
class AttentionRows {
 public:
  using scalar_t = typename Config::scalar_t;
  static constexpr int kHeadStrips = Config::kHeadStrips, kPartStrips = Config::kPartStrips;
  using HeadOperand = Operand<Warp>[kHeadStrips][1];

  PVT_DEVICE AttentionRows(const AttentionBlockArgs& args, int64_t image, int64_t first,
                           char* parked)
      : args_(args),
        x_(static_cast<char*>(args.x) + image * args.N * int64_t{2 * Config::C}),
        rows_{first, args.N, Config::C},
        parked_(parked) {
    each_normalised<scalar_t, Config::kStrips, Warp, 1>(
        x_, rows_, args.norm_weight, args.norm_bias, args.eps,
        [&](int s, Operand<Warp>(&token)[1]) {
          if constexpr (Config::kParked) {
            store_operand<Warp>(parked_ + s * kOperandBytes, token[0]);
          } else {
            tokens_[s][0] = token[0];
          }
        });
  }

  // The queries of a head, times the scale.
  template <class Chunks>
  PVT_DEVICE void query(int head, Chunks& chunks, HeadOperand& queries) {
    Strip<Warp> sums[kHeadStrips][1];
    set_bias(args_.q_bias + head * Config::kHeadDim, sums);
    PVT_NO_UNROLL for (int part = 0; part < Config::kParts; ++part) {
      const char* weight = chunks.next();
      PVT_UNROLL for (int step = 0; step < kPartStrips; ++step) {
        Operand<Warp> token[1];
        if constexpr (Config::kParked) {
          token[0] = load_operand<Warp>(parked_ + (part * kPartStrips + step) * kOperandBytes);
        } else {
          token[0] = tokens_[step][0];  // all inputs are one part
        }
        multiply(sums, token, weight + step * kSquare);
      }
    }
    PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
      PVT_UNROLL for (int j = 0; j < 4; ++j) {
        PVT_UNROLL for (int i = 0; i < 4; ++i) {
          sums[s][0].sum[j][i] = sums[s][0].sum[j][i] * typename Warp::Float(args_.scale);
        }
      }
      round<scalar_t>(sums[s][0], queries[s][0]);
    }
  }

  // x <- x + proj(heads), columns of one head's number.
  template <class Chunks>
  PVT_DEVICE void project(int columns, Chunks& chunks, const HeadOperand (&heads)[Config::kHeads]) {
    Strip<Warp> sums[kHeadStrips][1];
    set_bias(args_.proj_bias + columns * Config::kHeadDim, sums);
    PVT_UNROLL for (int part = 0; part < Config::kParts; ++part) {
      const char* weight = chunks.next();
      PVT_UNROLL for (int step = 0; step < kPartStrips; ++step) {
        const int s = part * kPartStrips + step;
        multiply(sums, heads[s / kHeadStrips][s % kHeadStrips], weight + step * kSquare);
      }
    }
    PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
      add_strip<scalar_t>(x_, rows_, columns * kHeadStrips + s, sums[s]);
    }
  }

 private:
  using Sums = Strip<Warp>[kHeadStrips][1];

  PVT_DEVICE void set_bias(const float* bias, Sums& sums) const {
    PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
      sums[s][0] = bias_strip<Warp>(bias + s * kStrip);
    }
  }
  // squares: those of the strips, kPartStrips apart
  PVT_DEVICE void multiply(Sums& sums, const Operand<Warp> (&operand)[1],
                           const char* squares) const {
    PVT_UNROLL for (int s = 0; s < kHeadStrips; ++s) {
      reader_.template multiply<scalar_t>(sums[s], operand, squares + s * kPartStrips * kSquare);
    }
  }

  const AttentionBlockArgs& args_;
  char* x_;
  AdjacentRows<Warp> rows_;
  SquareReader<Warp> reader_;
  char* parked_;
  Operand<Warp> tokens_[Config::kParked ? 1 : Config::kStrips][1];
};

// A block takes kRows tokens of one image.
template <class Config, class Block>
PVT_DEVICE void attention_block(Block& block, const AttentionBlockArgs& args) {
  using Warp = typename Block::Warp;
  const int64_t image = block.index() / args.blocks_per_image;
  const int64_t first =
      (block.index() - image * args.blocks_per_image) * Config::kRows + block.warp() * kTile;
  const AttentionCopies<Config, Block> copy(block, args, image);
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(
      block, copy.count(), copy);
  AttentionRows<Config, Warp> rows(
      args, image, first,
      block.shared() + Config::kSlots * Config::kSlotBytes + block.warp() * Config::kParkedBytes);
  using HeadOperand = typename AttentionRows<Config, Warp>::HeadOperand;
  HeadOperand heads[Config::kHeads];  // results; in registers, since every index is a constant
  PVT_UNROLL for (int head = 0; head < Config::kHeads; ++head) {
    HeadOperand queries;
    rows.query(head, chunks, queries);
    attend<typename Config::scalar_t, Config::kHeadDim, Warp>(
        queries, args.kv, chunks, [](const auto& difference) { return difference; }, heads[head]);
  }
  PVT_NO_UNROLL for (int columns = 0; columns < Config::kHeads; ++columns) {
    rows.project(columns, chunks, heads);
  }
}

}  // namespace pvt::cuda
