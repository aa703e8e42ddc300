// Attention of 16 queries to all keys of an image, which pass through shared memory 64 at a time.
#pragma once

#include <cmath>

#include "cuda/strips.h"

namespace pvt::cuda {

constexpr int kKeys = 64;  // that are there at once

// kv [B, kv_len, 2 C], keys then values.
struct KeyValues {
  const char* data;
  int64_t image_bytes, key_bytes;  // from one to the next
  int64_t value_bytes;             // from a key to its value
  int kv_len;

  PVT_HOST_DEVICE int blocks() const { return (kv_len + kKeys - 1) / kKeys; }
};

// ---- in shared memory: [keys, values][kKeys] rows of a head ----

template <int kHeadDim>
constexpr int kMatrixBytes = kKeys * kHeadDim * 2;
template <int kHeadDim>
constexpr int kKeyBytes = 2 * kMatrixBytes<kHeadDim>;

// Where 16 bytes of a row lie, `vector` their number. Eight rows of one vector, which values are
// read by, and two rows of four adjacent ones, which keys are read by, are each in different banks.
template <int kHeadDim, class Int>
PVT_DEVICE Int row_offset(const Int& row, const Int& vector) {
  constexpr int kRowsPerLine = 64 / kHeadDim;  // of 128 bytes
  return row / kRowsPerLine * 128 + ((vector ^ ((row & 1) << 2) ^ ((row >> 1) & 3)) * kVector);
}

// Starts the copy of keys and values [64 block, 64 (block + 1)) of a head; zeros beyond the last.
template <int kHeadDim, class Block>
PVT_DEVICE void copy_keys(Block& block, char* slot, const KeyValues& kv, int64_t image, int head,
                          int number) {
  constexpr int kVectors = kHeadDim * 2 / kVector;  // of a row
  constexpr int kStep = Block::kThreads / kVectors;
  static_assert(kKeys % kStep == 0, "every thread copies as many");
  block.each_thread([&](int thread) {
    const int vector = thread % kVectors, first = thread / kVectors;
    const char* from = kv.data + image * kv.image_bytes + head * (kHeadDim * 2) + vector * kVector;
    PVT_UNROLL for (int i = 0; i < kKeys; i += kStep) {
      const int row = first + i, key = number * kKeys + row;
      const char* key_from = from + key * kv.key_bytes;
      char* to = slot + row_offset<kHeadDim>(row, vector);
      block.copy(to, key_from, key < kv.kv_len);
      block.copy(to + kMatrixBytes<kHeadDim>, key_from + kv.value_bytes, key < kv.kv_len);
    }
  });
}

// The sums of a 16 x 8 product, columns 2 t and 2 t + 1 of every eight in lane t, as operands.
template <class scalar_t, class Warp, int kTiles8>
PVT_DEVICE void round_spread(const typename Warp::Float (&sums)[kTiles8][4],
                             Operand<Warp> (&operands)[kTiles8 / 4][1]) {
  PVT_UNROLL for (int j = 0; j < kTiles8; ++j) {
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      operands[j / 4][0].step[j / 2 % 2][half + 2 * (j % 2)] =
          Warp::template pack<scalar_t>(sums[j][2 * half], sums[j][2 * half + 1]);
    }
  }
}

// softmax(queries keys^T) values of one head. One pass over the keys: sums are scaled when a later
// block has a greater score.
//   queries: with adjacent channels   out: with spread ones
//   scaled: what a difference of scores is in units of log2. Scores themselves are not scaled: that
//   of the greatest one is 0 however large it is.
template <class scalar_t, int kHeadDim, class Warp, class Chunks, class Scaled>
PVT_DEVICE void attend(const Operand<Warp> (&queries)[kHeadDim / kStrip][1], const KeyValues& kv,
                       Chunks& chunks, const Scaled& scaled,
                       Operand<Warp> (&out)[kHeadDim / kStrip][1]) {
  using Float = typename Warp::Float;
  constexpr int kStrips = kHeadDim / kStrip, kKeyTiles = kKeys / 8, kOutTiles = kHeadDim / 8;
  const auto lane = Warp::lane();
  const auto g = lane >> 2, t = lane & 3;
  // Of a row in mma's B: key g of a tile. Of a row in load_shared_transposed(): lane's 8 low bits.
  typename Warp::Index key_offset[kStrips];
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) key_offset[s] = row_offset<kHeadDim>(g, t + 4 * s);
  const auto value_offset = row_offset<kHeadDim>(lane & 15, lane >> 4);

  Float sums[kOutTiles][4], greatest[2], total[2];
  PVT_UNROLL for (int j = 0; j < kOutTiles; ++j) {
    PVT_UNROLL for (int i = 0; i < 4; ++i) sums[j][i] = Float(0.f);
  }
  PVT_UNROLL for (int half = 0; half < 2; ++half) total[half] = Float(0.f);

  const int blocks = kv.blocks();
  PVT_NO_UNROLL for (int block = 0; block < blocks; ++block) {
    const char* keys = chunks.next();
    const char* values = keys + kMatrixBytes<kHeadDim>;

    Float scores[kKeyTiles][4];
    PVT_UNROLL for (int j = 0; j < kKeyTiles; ++j) {
      PVT_UNROLL for (int i = 0; i < 2; ++i) {
        const auto exists = block * kKeys + 8 * j + i + (t << 1) < kv.kv_len;
        scores[j][i] = Warp::select(exists, Float(0.f), Float(-INFINITY));
        scores[j][2 + i] = scores[j][i];
      }
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        const auto b = Warp::load_shared(keys + j * (8 * kHeadDim * 2), key_offset[s]);
        PVT_UNROLL for (int step = 0; step < 2; ++step) {
          Warp::template mma<scalar_t>(scores[j], queries[s][0].step[step], b.word[2 * step],
                                       b.word[2 * step + 1], scores[j]);
        }
      }
    }

    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      Float most = Warp::max(scores[0][2 * half], scores[0][2 * half + 1]);
      PVT_UNROLL for (int j = 1; j < kKeyTiles; ++j) {
        most = Warp::max(most, Warp::max(scores[j][2 * half], scores[j][2 * half + 1]));
      }
      most = Warp::max(most, Warp::exchange(most, 1));
      most = Warp::max(most, Warp::exchange(most, 2));
      if (block > 0) {
        most = Warp::max(most, greatest[half]);
        const Float factor = Warp::exp2(scaled(greatest[half] - most));
        total[half] = total[half] * factor;
        PVT_UNROLL for (int j = 0; j < kOutTiles; ++j) {
          PVT_UNROLL for (int i = 0; i < 2; ++i) {
            sums[j][2 * half + i] = sums[j][2 * half + i] * factor;
          }
        }
      }
      greatest[half] = most;
      PVT_UNROLL for (int j = 0; j < kKeyTiles; ++j) {
        PVT_UNROLL for (int i = 0; i < 2; ++i) {
          auto& score = scores[j][2 * half + i];
          score = Warp::exp2(scaled(score - most));
          total[half] = total[half] + score;
        }
      }
    }

    Operand<Warp> weights[kKeyTiles / 4][1];
    round_spread<scalar_t, Warp>(scores, weights);
    PVT_UNROLL for (int step = 0; step < kKeys / kTile; ++step) {
      PVT_UNROLL for (int j = 0; j < kOutTiles; j += 2) {
        // 16 keys of 16 channels; a vector has 8
        const auto b = Warp::load_shared_transposed(values + step * (kTile * kHeadDim * 2),
                                                    value_offset ^ (j * kVector));
        PVT_UNROLL for (int i = 0; i < 2; ++i) {
          Warp::template mma<scalar_t>(sums[j + i], weights[step / 2][0].step[step % 2],
                                       b.word[2 * i], b.word[2 * i + 1], sums[j + i]);
        }
      }
    }
  }

  PVT_UNROLL for (int half = 0; half < 2; ++half) {
    Float sum = total[half] + Warp::exchange(total[half], 1);
    sum = sum + Warp::exchange(sum, 2);
    const Float factor = Warp::reciprocal(sum);
    PVT_UNROLL for (int j = 0; j < kOutTiles; ++j) {
      PVT_UNROLL for (int i = 0; i < 2; ++i) {
        sums[j][2 * half + i] = sums[j][2 * half + i] * factor;
      }
    }
  }
  round_spread<scalar_t, Warp>(sums, out);
}

}  // namespace pvt::cuda
