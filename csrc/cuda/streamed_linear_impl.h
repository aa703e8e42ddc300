// A linear layer, after a LayerNorm or not, for more inputs or more rows than linear() is for. Sums
// stay in registers, while inputs, which lie in memory as operands do, and weights pass by.
#pragma once

#include "cuda/chunks.h"
#include "cuda/results.h"

namespace pvt::cuda {

struct StreamedLinearArgs {
  const void* x;  // [rows, depth]
  int64_t rows;
  int depth;                 // a multiple of kDepth
  const float* norm_weight;  // [depth], with kNorm
  const float* norm_bias;
  float eps;
  const char* weight;  // packed [columns, depth]
  const float* bias;
  void* out;  // [rows, columns]
  int columns;
  int block_columns;  // of a block, a multiple of kColumns
};

// A block computes kStrips strips of columns at a time, for kTiles tiles of rows per warp; weights
// come kDepth inputs at a time.
template <class scalar_t_, bool kNorm_, Then kThen_, int kTiles_, int kStrips_, int kWarps_,
          int kDepth_, int kSlots_>
struct StreamedLinearConfig {
  using scalar_t = scalar_t_;
  static constexpr bool kNorm = kNorm_;
  static constexpr Then kThen = kThen_;
  static constexpr int kTiles = kTiles_, kStrips = kStrips_, kWarps = kWarps_, kDepth = kDepth_;
  static constexpr int kSlots = kSlots_;
  static constexpr int kColumns = kStrips * kStrip, kRows = kTiles * kTile * kWarps;
  static constexpr int kSteps = kDepth / kStrip;
  static constexpr int kSlotBytes = kStrips * kSteps * kSquare;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
};

// The rows of a warp, kSteps strips at a time and again from the first when they end. Those of the
// next call are on their way meanwhile.
template <class Warp, int kSteps, int kTiles>
class PassingRows {
 public:
  PVT_DEVICE PassingRows(const void* x, const AdjacentRows<Warp>& rows) : x_(x), rows_(rows) {
    load_rows(x_, rows_, coming_);
  }

  PVT_DEVICE void next(Operand<Warp> (&strips)[kSteps][kTiles]) {
    first_ = first_ + kSteps == rows_.C / kStrip ? 0 : first_ + kSteps;
    const AdjacentRows<Warp> rows{rows_.first, rows_.rows, Warp::opaque(rows_.C)};
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        strips[step][tile] = coming_[step][tile];
      }
      load_strip(x_, rows, first_ + step, coming_[step]);
    }
  }

 private:
  const void* x_;
  const AdjacentRows<Warp>& rows_;
  int first_ = 0;
  Operand<Warp> coming_[kSteps][kTiles];
};

// Block index: [row group][column group].
template <class Config, class Block>
PVT_DEVICE void streamed_linear(Block& block, const StreamedLinearArgs& args) {
  using Warp = typename Block::Warp;
  using scalar_t = typename Config::scalar_t;
  constexpr int kStrips = Config::kStrips, kTiles = Config::kTiles, kSteps = Config::kSteps;
  const int64_t panel_bytes = int64_t{args.depth} / 2 * kPanelLine;
  const int groups = (args.columns + args.block_columns - 1) / args.block_columns;
  const int begin = static_cast<int>(block.index() % groups) * args.block_columns;
  const int left = args.columns - begin;
  const int parts = (left < args.block_columns ? left : args.block_columns) / Config::kColumns;
  const int64_t first = block.index() / groups * Config::kRows + block.warp() * (kTiles * kTile);

  const int depth_chunks = args.depth / Config::kDepth;
  const char* weight = args.weight + begin / kPanel * panel_bytes;
  const auto copy = [&](int chunk, char* slot) {
    const int columns = chunk / depth_chunks, inputs = chunk - columns * depth_chunks;
    const int64_t panel_bytes = int64_t{Warp::opaque(args.depth)} / 2 * kPanelLine;
    copy_squares<kStrips, kSteps>(block, slot,
                                  weight + columns * (Config::kColumns / kPanel) * panel_bytes +
                                      int64_t{inputs} * (Config::kDepth / 2 * kPanelLine),
                                  panel_bytes);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(
      block, parts * depth_chunks, copy);

  const AdjacentRows<Warp> rows{first, args.rows, args.depth};
  const auto norm = [&] {
    if constexpr (Config::kNorm) {
      return RowNorm<scalar_t, Warp, kTiles>(args.x, rows, args.depth, args.eps);
    } else {
      return 0;
    }
  }();
  PassingRows<Warp, kSteps, kTiles> passing(args.x, rows);
  const SquareReader<Warp> reader;
  PVT_NO_UNROLL for (int columns = 0; columns < parts; ++columns) {
    const int column = begin + columns * Config::kColumns;
    Strip<Warp> sums[kStrips][kTiles];
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      const Strip<Warp> bias = bias_strip<Warp>(args.bias + column + s * kStrip);
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) sums[s][tile] = bias;
    }
    PVT_NO_UNROLL for (int chunk = 0; chunk < depth_chunks; ++chunk) {
      Operand<Warp> inputs[kSteps][kTiles];
      passing.next(inputs);
      if constexpr (Config::kNorm) {
        PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
          const int channel = chunk * Config::kDepth + step * kStrip;
          norm.apply(args.norm_weight + channel, args.norm_bias + channel, inputs[step]);
        }
      }
      const char* squares = chunks.next();
      PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
        PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
          reader.template multiply<scalar_t>(sums[s], inputs[step],
                                             squares + (s * kSteps + step) * kSquare);
        }
      }
    }
    const AdjacentRows<Warp> results{first, args.rows, Warp::opaque(args.columns)};
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      put_strip<scalar_t, Config::kThen>(args.out, results, column / kStrip + s, sums[s]);
    }
  }
}

}  // namespace pvt::cuda
