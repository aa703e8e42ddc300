// The body of sra_attention: softmax(scale q k^T) v. A block has tokens of one head of an image,
// whose keys and values stay in shared memory.
#pragma once

#include "cuda/chunks.h"
#include "cuda/keys.h"
#include "cuda/tokens.h"

namespace pvt::cuda {

struct SraAttentionArgs {
  const void* q;  // [B, N, C]
  KeyValues kv;
  void* out;  // [B, N, C]
  int64_t N;
  int heads;
  float scale;  // of the scores, times log2(e); greater than zero: missing keys have -inf
  int parts;    // that the tokens of an image are shared out to
};

template <class scalar_t_, int kHeadDim_, int kWarps_>
struct SraAttentionConfig {
  using scalar_t = scalar_t_;
  static constexpr int kHeadDim = kHeadDim_, kWarps = kWarps_;
  static constexpr int kStrips = kHeadDim / kStrip, kRows = kTile * kWarps;

  static constexpr int shared_bytes(int key_blocks) { return key_blocks * kKeyBytes<kHeadDim>; }
};

// From spread channels, those of a product's columns, to adjacent ones, those of memory: among the
// four lanes of a row, what lane t has in place i and lane i in place t change places.
template <class Warp>
PVT_DEVICE void gather_spread(Operand<Warp>& operand) {
  PVT_UNROLL for (int bits = 1; bits <= 2; bits *= 2) {
    const auto is_upper = 0 < (Warp::lane() & bits);
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      PVT_UNROLL for (int i = 0; i < 4; ++i) {
        if ((i & bits) != 0)
          continue;
        auto& low = operand.pair(half, i);
        auto& high = operand.pair(half, i + bits);
        const auto received = Warp::exchange(Warp::select(is_upper, low, high), bits);
        low = Warp::select(is_upper, received, low);
        high = Warp::select(is_upper, high, received);
      }
    }
  }
}

// Block index: [image][head][part].
template <class Config, class Block>
PVT_DEVICE void sra_attention(Block& block, const SraAttentionArgs& args) {
  using Warp = typename Block::Warp;
  constexpr int kHeadDim = Config::kHeadDim, kStrips = Config::kStrips;
  const int image_head = static_cast<int>(block.index()) / args.parts;
  const int part = static_cast<int>(block.index()) - image_head * args.parts;
  const int image = image_head / args.heads, head = image_head - image * args.heads;
  const int64_t tiles = (args.N + kTile - 1) / kTile;
  const auto part_begin = [&](int p) { return static_cast<int>(tiles * p / args.parts); };
  const int C = args.heads * kHeadDim;
  const int64_t offset = image * args.N * (int64_t{2} * C) + head * (2 * kHeadDim);
  const char* q = static_cast<const char*>(args.q) + offset;
  char* out = static_cast<char*>(args.out) + offset;
  const int end = part_begin(part + 1);
  const auto rows_of = [&](int tile) {
    return AdjacentRows<Warp>{int64_t{tile} * kTile, args.N, C};
  };
  Operand<Warp> queries[kStrips][1];
  int tile = part_begin(part) + block.warp();
  if (tile < end)
    load_rows(q, rows_of(tile), queries);  // on their way as keys are

  const auto copy = [&](int chunk, char* slot) {
    copy_keys<kHeadDim>(block, slot, args.kv, image, head, chunk);
  };
  StayingChunks<kKeyBytes<kHeadDim>, Block, decltype(copy)> chunks(block, args.kv.blocks(), copy);
  for (; tile < end; tile += Config::kWarps) {
    Operand<Warp> result[kStrips][1];
    attend<typename Config::scalar_t, kHeadDim, Warp>(
        queries, args.kv, chunks,
        [&](const auto& difference) { return difference * typename Warp::Float(args.scale); },
        result);
    if (tile + Config::kWarps < end)
      load_rows(q, rows_of(tile + Config::kWarps), queries);
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      gather_spread(result[s][0]);
      store_rows(out, rows_of(tile), s, result[s]);
    }
  }
}

}  // namespace pvt::cuda
