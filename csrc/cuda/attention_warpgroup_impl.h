// The body of attention_block_ for warpgroups, of up to 64 keys: x <- x + proj(attention(q(
// LayerNorm(x)), kv)). Keys of a head are one block of weights and its values another, so that
// attention is two products as those of an MLP, with a softmax between them.
#pragma once

#include "cuda/attention_block_impl.h"
#include "cuda/linear_warpgroup_impl.h"

namespace pvt::cuda {

struct AttentionWarpgroupArgs {
  AttentionBlockArgs attention;  // its weights in blocks, those of all inputs one after the other
  int parts;                     // that the tokens of an image are shared out to
};

template <class scalar_t_, int C_, int kWarps_, int kSlots_>
struct AttentionWarpgroupConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr int kHeadDim = kBlock, kHeads = C / kHeadDim, kStrips = C / kStrip;
  static constexpr int kGroups = kWarps / kGroupWarps, kRows = kWarps * kTile;
  // q's weight and the projection's, a head's number of columns at a time.
  static constexpr int kChunks = 2 * kHeads, kSlotBytes = kHeads * kBlockBytes;
  static constexpr bool kStaying = kSlots == kChunks;
  static constexpr int kHeadBytes = 2 * kBlockBytes;  // keys, values
  static constexpr int kSharedBytes = kSlots * kSlotBytes + kHeads * kHeadBytes;
};

// ---- keys and values as blocks of weights ----

// A head's keys are columns of one block, its values inputs of the next. Beyond the last they are
// zeros.
template <class Block>
PVT_DEVICE void write_key_blocks(Block& block, char* to, const KeyValues& kv, int64_t image,
                                 int head) {
  const char* const keys = kv.data + image * kv.image_bytes + head * (kBlock * 2);
  const auto store = [](char* vector, int word, uint32_t value) {
    reinterpret_cast<uint32_t*>(vector)[word] = value;
  };
  constexpr int kVectors = kBlock * 8;
  block.each_thread([&](int thread) {
    // Adjacent threads have vectors of one key,
    PVT_NO_UNROLL for (int i = thread; i < kVectors; i += Block::kThreads) {
      const int row = i / 8, vector = i % 8, key = column_of_row(row);
      const char* const from = keys + key * kv.key_bytes;
      PVT_UNROLL for (int word = 0; word < 4; ++word) {
        const int channel = input_of_word(vector, word);
        store(to + swizzled(row, vector), word,
              key < kv.kv_len ? *reinterpret_cast<const uint32_t*>(from + 2 * channel) : 0);
      }
    }
    // and then channels of the same values.
    const char* const values = keys + kv.value_bytes;
    PVT_NO_UNROLL for (int i = thread; i < kVectors; i += Block::kThreads) {
      const int row = i % kBlock, vector = i / kBlock;
      const char* const from = values + 2 * column_of_row(row);
      const auto value = [&](int key) -> uint32_t {
        return key < kv.kv_len ? *reinterpret_cast<const uint16_t*>(from + key * kv.key_bytes) : 0;
      };
      PVT_UNROLL for (int word = 0; word < 4; ++word) {
        const int key = input_of_word(vector, word);
        store(to + kBlockBytes + swizzled(row, vector), word, value(key) | value(key + 1) << 16);
      }
    }
  });
}

// ---- softmax ----

// Scores become their exponentials, of which the greatest of a row is 1; returns its sum for rows g
// and g + 8. Keys from kv_len on do not count.
template <class Warp>
PVT_DEVICE void exponentials(Strip<Warp> (&scores)[2], int kv_len,
                             typename Warp::Float (&total)[2]) {
  using Float = typename Warp::Float;
  PVT_UNROLL for (int s = 0; s < 2; ++s) {
    if (kv_len >= (s + 1) * kStrip)
      continue;
    const auto first = ((Warp::lane() & 3) << 3) + s * kStrip;
    PVT_UNROLL for (int c = 0; c < 8; ++c) {
      const auto exists = first + c < kv_len;
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        auto& score = scores[s].at(half, c);
        score = Warp::select(exists, score, Float(-INFINITY));
      }
    }
  }
  PVT_UNROLL for (int half = 0; half < 2; ++half) {
    Float most = scores[0].at(half, 0);
    PVT_UNROLL for (int c = 1; c < 16; ++c) most = Warp::max(most, scores[c / 8].at(half, c % 8));
    most = Warp::max(most, Warp::exchange(most, 1));
    most = Warp::max(most, Warp::exchange(most, 2));
    Float sum = Float(0.f);
    PVT_UNROLL for (int c = 0; c < 16; ++c) {
      auto& score = scores[c / 8].at(half, c % 8);
      score = Warp::exp2(score - most);
      sum = sum + score;
    }
    total[half] = sum_of_row<Warp>(sum);
  }
}

// ---- tokens ----

// 16 tokens of a warp.
template <class Config, class Warp>
class AttentionWarpgroupRows {
 public:
  using scalar_t = typename Config::scalar_t;
  using Float = typename Warp::Float;

  PVT_DEVICE AttentionWarpgroupRows(const AttentionBlockArgs& args, int64_t image,
                                    typename Warp::Blocks keys)
      : args_(args),
        x_(static_cast<char*>(args.x) + image * args.N * int64_t{2 * Config::C}),
        keys_(keys) {}

  template <class Chunks>
  PVT_DEVICE void run(int64_t first, Chunks& chunks) const {
    const AdjacentRows<Warp> rows{first, args_.N, Config::C};
    Operand<Warp> tokens[Config::kStrips], attended[Config::kStrips];
    each_normalised<scalar_t, Config::kStrips, Warp, 1>(
        x_, rows, args_.norm_weight, args_.norm_bias, args_.eps,
        [&](int s, Operand<Warp>(&token)[1]) { tokens[s] = token[0]; });
    settle(tokens);
    PVT_UNROLL for (int head = 0; head < Config::kHeads; ++head) {
      Strip<Warp> sums[2];
      Operand<Warp> operands[2];
      query(tokens, head, Warp::blocks(chunks.next()), sums);
      round(sums, operands);
      const auto keys = Warp::after(keys_, head * Config::kHeadBytes);
      multiply(operands, keys, sums);
      Float total[2];
      exponentials(sums, args_.kv.kv_len, total);
      round(sums, operands);
      multiply(operands, Warp::after(keys, kBlockBytes), sums);
      scale(sums, Warp::reciprocal(total[0]), Warp::reciprocal(total[1]));
      PVT_UNROLL for (int s = 0; s < 2; ++s) {
        pvt::cuda::round<scalar_t>(sums[s], attended[2 * head + s]);
      }
    }
    settle(attended);
    BlockResults<scalar_t, Then::kAdd, Warp, Config::C> results(x_, rows, args_.proj_bias,
                                                                /*first=*/0);
    multiply_columns<scalar_t, /*kTwo=*/false>(attended, chunks, Config::kHeads, results);
  }

 private:
  // sums <- queries of a head, times the scale
  PVT_DEVICE void query(const Operand<Warp> (&tokens)[Config::kStrips], int head,
                        typename Warp::Blocks weight, Strip<Warp> (&sums)[2]) const {
    Warp::begin_products();
    multiply_tokens<scalar_t>(sums, tokens, weight);
    finish(sums);
    add_bias(sums, args_.q_bias + head * kBlock);
    scale(sums, Float(args_.scale), Float(args_.scale));
  }

  static PVT_DEVICE void round(Strip<Warp> (&sums)[2], Operand<Warp> (&operands)[2]) {
    PVT_UNROLL for (int s = 0; s < 2; ++s) pvt::cuda::round<scalar_t>(sums[s], operands[s]);
  }
  // sums <- operands * block
  static PVT_DEVICE void multiply(Operand<Warp> (&operands)[2], typename Warp::Blocks block,
                                  Strip<Warp> (&sums)[2]) {
    begin_products<Warp>(operands[0], operands[1]);
    multiply_blocks<scalar_t, /*kFresh=*/true>(sums, operands[0], operands[1], block);
    finish(sums);
  }
  static PVT_DEVICE void finish(Strip<Warp> (&sums)[2]) {
    Warp::commit_products();
    Warp::template wait_products<0>();
    settle(sums);
  }
  // Rows g and g + 8 by a factor each.
  static PVT_DEVICE void scale(Strip<Warp> (&sums)[2], const Float& first, const Float& second) {
    PVT_UNROLL for (int c = 0; c < 16; ++c) {
      auto& strip = sums[c / 8];
      strip.at(0, c % 8) = strip.at(0, c % 8) * first;
      strip.at(1, c % 8) = strip.at(1, c % 8) * second;
    }
  }

  const AttentionBlockArgs& args_;
  char* x_;
  typename Warp::Blocks keys_;
};

// Block index: [image][part]. Where all weights fit they stay, and a warpgroup takes 64 tokens
// after the other; else they pass by once, and it takes 64.
template <class Config, class Block>
PVT_DEVICE void attention_warpgroup(Block& block, const AttentionWarpgroupArgs& args) {
  using Warp = typename Block::Warp;
  const AttentionBlockArgs& attention = args.attention;
  const int image = static_cast<int>(block.index()) / args.parts;
  const int part = static_cast<int>(block.index()) - image * args.parts;
  char* const keys = block.shared() + Config::kSlots * Config::kSlotBytes;
  PVT_NO_UNROLL for (int head = 0; head < Config::kHeads; ++head) {
    write_key_blocks(block, keys + head * Config::kHeadBytes, attention.kv, image, head);
  }
  const auto copy = [&](int chunk, char* slot) {
    const bool is_query = chunk < Config::kHeads;
    const char* const weight = is_query ? attention.q_weight : attention.proj_weight;
    const int columns = is_query ? chunk : chunk - Config::kHeads;
    block.template copy_piece<Config::kSlotBytes>(slot, weight + columns * Config::kSlotBytes);
  };
  const AttentionWarpgroupRows<Config, Warp> rows(attention, image, Warp::blocks(keys));
  const int group = block.warp() / kGroupWarps, row = block.warp() % kGroupWarps * kTile;
  if constexpr (Config::kStaying) {
    StayingChunks<Config::kSlotBytes, Block, decltype(copy)> chunks(block, Config::kChunks, copy);
    const int64_t tiles = (attention.N + kGroupRows - 1) / kGroupRows;
    const int end = static_cast<int>(tiles * (part + 1) / args.parts);
    int tile = static_cast<int>(tiles * part / args.parts) + group;
    PVT_NO_UNROLL for (; tile < end; tile += Config::kGroups) {
      rows.run(int64_t{tile} * kGroupRows + row, chunks);
    }
  } else {
    PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy), /*kInUse=*/2> chunks(
        block, Config::kChunks, copy);
    rows.run(int64_t{part} * Config::kRows + group * kGroupRows + row, chunks);
  }
}

}  // namespace pvt::cuda
