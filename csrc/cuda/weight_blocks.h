// Weights as the products of a warpgroup take them: blocks of 64 columns and 64 inputs, a column's
// inputs a row of 128 bytes, swizzled. They are put into blocks at every call, in memory of its
// own, since packed weights are what all devices share.
#pragma once

#include "cuda/device.h"

namespace pvt::cuda {

constexpr int kBlock = 64;                        // columns, and inputs, of a block
constexpr int kBlockBytes = kBlock * kBlock * 2;  // whole kSwizzleBytes
constexpr int kSwizzleBytes = 1024;               // eight rows, after which the swizzle repeats

// Where vector 0 .. 7 of a row lies.
PVT_HOST_DEVICE int swizzled(int row, int vector) {
  return row * 128 + (vector ^ (row & 7)) * kVector;
}

// The first of the two inputs in word 0 .. 3 of a vector: a row has those of an Operand (strips.h)
// one step after the other, of lanes 4 g + word.
PVT_HOST_DEVICE int input_of_word(int vector, int word) {
  const int strip = vector / 4, step = vector / 2 % 2, half = vector % 2;
  return strip * kStrip + word * 8 + step * 4 + half * 2;
}
// The column of a row, such that the sums of 32 rows are those of a Strip.
PVT_HOST_DEVICE int column_of_row(int row) {
  const int j = row / 8 % 4, t = row % 8 / 2, i = row % 2;
  return row / kStrip * kStrip + 8 * t + j + 4 * i;
}

// Which blocks follow each other.
enum class Follow {
  kInputs,   // those of the same columns
  kColumns,  // those of the same inputs
};

struct WeightBlocksArgs {
  const char* weight;  // packed [columns, depth], both multiples of kBlock
  char* blocks;
  int columns, depth;
  Follow follow;
};

PVT_HOST_DEVICE int64_t block_vectors(const WeightBlocksArgs& args) {
  return int64_t{args.columns} * args.depth * 2 / kVector;
}

// Writes vector number `index` of all blocks.
PVT_HOST_DEVICE void write_block_vector(const WeightBlocksArgs& args, int64_t index) {
  const int vector = static_cast<int>(index % 8), row = static_cast<int>(index / 8 % kBlock);
  const int block = static_cast<int>(index / (8 * kBlock));
  const bool inputs = args.follow == Follow::kInputs;
  const int line = (inputs ? args.depth : args.columns) / kBlock;
  const int column = (inputs ? block / line : block % line) * kBlock + column_of_row(row);
  const int first = (inputs ? block % line : block / line) * kBlock;
  const uint32_t* const panel = reinterpret_cast<const uint32_t*>(args.weight) +
                                int64_t{column / kPanel} * (args.depth / 2) * kPanel +
                                column % kPanel;
  uint32_t* const to = reinterpret_cast<uint32_t*>(args.blocks + int64_t{block} * kBlockBytes +
                                                   swizzled(row, vector));
  PVT_UNROLL for (int word = 0; word < 4; ++word) {
    to[word] = panel[(first + input_of_word(vector, word)) / 2 * kPanel];
  }
}

}  // namespace pvt::cuda
