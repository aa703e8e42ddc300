// Matrix products of a warp: 16 rows times 32 columns at a time, a strip.
//
// mma.m16n8k16 says which rows and columns of its operands a lane holds; which channels of a token
// these are is free to choose, as long as both operands agree. Here lane 4 g + t always has
// channels 8 t .. 8 t + 7 of every 32, of rows g and g + 8. So tokens are read and written 16 bytes
// at a time where they lie, and a warp's sums are the operand of its next product as they are.
// Weights are those of the CPU, in its panels: they take their own places on the way into shared
// memory.
#pragma once

#include "cuda/device.h"

namespace pvt::cuda {

// 32 channels of 16 rows, rounded to 16 bits: the left operand of two steps of mma.m16n8k16.
template <class Warp>
struct Operand {
  typename Warp::Word step[2][4];

  // Channels 8 t + 2 i and 8 t + 2 i + 1 of row g + 8 half.
  PVT_DEVICE typename Warp::Word& pair(int half, int i) { return step[i / 2][half + 2 * (i % 2)]; }
};

// Operands in shared memory, so that they take no registers.
template <class Warp>
PVT_DEVICE void store_operand(char* to, Operand<Warp>& operand) {
  PVT_UNROLL for (int step = 0; step < 2; ++step) {
    typename Warp::Vector v;
    PVT_UNROLL for (int i = 0; i < 4; ++i) v.word[i] = operand.step[step][i];
    Warp::store_shared(to + step * kLanes * kVector, Warp::lane() * kVector, v);
  }
}

template <class Warp>
PVT_DEVICE Operand<Warp> load_operand(const char* from) {
  Operand<Warp> operand;
  PVT_UNROLL for (int step = 0; step < 2; ++step) {
    const auto v = Warp::load_shared(from + step * kLanes * kVector, Warp::lane() * kVector);
    PVT_UNROLL for (int i = 0; i < 4; ++i) operand.step[step][i] = v.word[i];
  }
  return operand;
}

constexpr int kOperandBytes = 2 * kLanes * kVector;

// 32 columns of 16 rows as float32 sums: the results of four mma.m16n8k16 side by side.
template <class Warp>
struct Strip {
  typename Warp::Float sum[4][4];

  // Column 8 t + c of row g + 8 half.
  PVT_DEVICE typename Warp::Float& at(int half, int c) { return sum[c % 4][2 * half + c / 4]; }
};

// 8 floats per lane, those of its channels among the 32 at `vector`.
template <class Warp>
PVT_DEVICE void load_channels(const float* vector, typename Warp::Float (&out)[8]) {
  const auto first = (Warp::lane() & 3) << 3;
  typename Warp::Float low[4], high[4];
  Warp::load_floats(vector, first, low);
  Warp::load_floats(vector, first + 4, high);
  PVT_UNROLL for (int c = 0; c < 4; ++c) out[c] = low[c], out[c + 4] = high[c];
}

// The strip whose every row is the bias.
template <class Warp>
PVT_DEVICE Strip<Warp> bias_strip(const float* bias) {
  typename Warp::Float channels[8];
  load_channels<Warp>(bias, channels);
  Strip<Warp> strip;
  PVT_UNROLL for (int half = 0; half < 2; ++half) {
    PVT_UNROLL for (int c = 0; c < 8; ++c) strip.at(half, c) = channels[c];
  }
  return strip;
}

template <class Warp>
PVT_DEVICE void set_zero(Strip<Warp>& strip) {
  PVT_UNROLL for (int j = 0; j < 4; ++j) {
    PVT_UNROLL for (int i = 0; i < 4; ++i) strip.sum[j][i] = typename Warp::Float(0.f);
  }
}

// Sums as the operand of the next product.
template <class scalar_t, class Warp>
PVT_DEVICE void round(Strip<Warp>& strip, Operand<Warp>& operand) {
  PVT_UNROLL for (int half = 0; half < 2; ++half) {
    PVT_UNROLL for (int i = 0; i < 4; ++i) {
      operand.pair(half, i) =
          Warp::template pack<scalar_t>(strip.at(half, 2 * i), strip.at(half, 2 * i + 1));
    }
  }
}

// ---- weights in shared memory ----
//
// A square is 32 inputs of a strip, as the right operands of mma.m16n8k16 lie in registers:
//   [step 0, 1][columns 4 g + 0, 1 or 2, 3][lane] of 16 bytes,
// in which a lane finds both registers of both columns, so one load without a bank conflict brings
// operands for two products and nothing has to be moved. Panels have pairs of inputs of a column as
// words of 4 bytes, which go to their places one by one.

constexpr int kSquareWords = kStrip / 2 * kStrip;
constexpr int kSquare = 4 * kSquareWords;   // bytes
constexpr int kPanelLine = kPanel * 2 * 2;  // bytes of a pair of inputs in a panel

// Lane 4 g + t has its 16 bytes in the place of lane 4 g + t for columns 0, 1 and of lane
// 4 g + (t ^ 2) for columns 2, 3: then a copy to both meets no bank twice.
template <class Int>
PVT_DEVICE Int place(const Int& lane, int columns) {
  return lane ^ (2 * columns);
}

// The channels that a lane holds of 32 inputs. Those of tokens, and of sums in a Strip, are next to
// each other. mma.m16n8k16 itself gives a lane channels 2 t and 2 t + 1 of every eight.
enum class Inputs { kAdjacent, kSpread };

// For each word of a square, or of the part of it that the block copies at a time: where a thread
// finds it in packed weights and where it goes. It is the same in every square, so there is next to
// no arithmetic in a copy, which would take slots from the products.
//
// Bits of a word's number: 0-2 column, 3 half of the inputs of a step, 4-5 t, 6 panel, 7 column,
// 8 step.
template <Inputs kInputs>
PVT_DEVICE int pair_of_word(int word) {
  const int t = word >> 4 & 3, step = word >> 8 & 1, half = word >> 3 & 1;
  return kInputs == Inputs::kAdjacent ? 4 * t + 2 * step + half : 8 * step + 4 * half + t;
}
// Its column, at the first pair of inputs.
PVT_DEVICE int64_t column_of_word(int word, int64_t panel_bytes) {
  const int column = (word & 7) + (word >> 7 & 1) * 8;
  return (word >> 6 & 1) * panel_bytes + column * 4;
}
template <Inputs kInputs>
PVT_DEVICE int64_t source_of_word(int word, int64_t panel_bytes) {
  return column_of_word(word, panel_bytes) + pair_of_word<kInputs>(word) * kPanelLine;
}
PVT_DEVICE int target_of_word(int word) {
  const int column = (word & 7) + (word >> 7 & 1) * 8 + (word >> 6 & 1) * 16;
  const int lane = column / 4 * 4 + (word >> 4 & 3);
  const int columns = column >> 1 & 1, step = word >> 8 & 1;
  return ((step * 2 + columns) * kLanes + place(lane, columns)) * kVector + (column & 1) * 8 +
         (word >> 3 & 1) * 4;
}

// Starts the copy of squares [kStrips][kSteps] of packed weights, for operands that hold kInputs.
//   from: the first input of the first panel, panels panel_bytes apart
template <int kStrips, int kSteps, Inputs kInputs = Inputs::kAdjacent, class Block>
PVT_DEVICE void copy_squares(Block& block, char* to, const char* from, int64_t panel_bytes) {
  constexpr int kThreads = Block::kThreads;
  static_assert(kThreads >= 128 && kThreads <= kSquareWords && kSquareWords % kThreads == 0,
                "a square is whole copies of the block");
  block.each_thread([&](int thread) {
    const char* const thread_from = from + source_of_word<kInputs>(thread, panel_bytes);
    char* const thread_to = to + target_of_word(thread);
    PVT_UNROLL for (int strip = 0; strip < kStrips; ++strip) {
      PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
        PVT_UNROLL for (int part = 0; part < kSquareWords; part += kThreads) {
          block.copy_word(thread_to + (strip * kSteps + step) * kSquare + target_of_word(part),
                          thread_from + strip * 2 * panel_bytes + step * (kStrip / 2 * kPanelLine) +
                              source_of_word<kInputs>(part, panel_bytes));
        }
      }
    }
  });
}

// Starts the copy of kBytes that lie in one piece.
template <int kBytes, class Block>
PVT_DEVICE void copy_bytes(Block& block, char* to, const void* from) {
  static_assert(kBytes % kVector == 0 && kBytes / kVector <= Block::kThreads, "one per thread");
  block.each_thread([&](int thread) {
    if (thread < kBytes / kVector) {
      block.copy(to + thread * kVector, static_cast<const char*>(from) + thread * kVector);
    }
  });
}

// Where a lane finds its part of a square.
template <class Warp>
class SquareReader {
 public:
  PVT_DEVICE SquareReader() {
    PVT_UNROLL for (int columns = 0; columns < 2; ++columns) {
      offset_[columns] = place(Warp::lane(), columns) * kVector;
    }
  }

  // strips[tile] += operands[tile] * square
  template <class scalar_t, int kTiles>
  PVT_DEVICE void multiply(Strip<Warp> (&strips)[kTiles], const Operand<Warp> (&operands)[kTiles],
                           const char* square) const {
    run<scalar_t>(strips, operands, square,
                  [&](int tile) -> const Strip<Warp>& { return strips[tile]; });
  }

  // strips[tile] = start + operands[tile] * square
  template <class scalar_t, int kTiles>
  PVT_DEVICE void multiply(Strip<Warp> (&strips)[kTiles], const Strip<Warp>& start,
                           const Operand<Warp> (&operands)[kTiles], const char* square) const {
    run<scalar_t>(strips, operands, square, [&](int) -> const Strip<Warp>& { return start; });
  }

 private:
  template <class scalar_t, int kTiles, class Start>
  PVT_DEVICE void run(Strip<Warp> (&strips)[kTiles], const Operand<Warp> (&operands)[kTiles],
                      const char* square, const Start& start) const {
    PVT_UNROLL for (int step = 0; step < 2; ++step) {
      PVT_UNROLL for (int columns = 0; columns < 2; ++columns) {
        const auto b =
            Warp::load_shared(square + (step * 2 + columns) * kLanes * kVector, offset_[columns]);
        PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
          PVT_UNROLL for (int i = 0; i < 2; ++i) {
            const int j = 2 * columns + i;
            const Strip<Warp>& from = step == 0 ? start(tile) : strips[tile];
            Warp::template mma<scalar_t>(strips[tile].sum[j], operands[tile].step[step],
                                         b.word[2 * i], b.word[2 * i + 1], from.sum[j]);
          }
        }
      }
    }
  }

  typename Warp::Index offset_[2];
};

}  // namespace pvt::cuda
