// A convolution of tokens, on their LayerNorm or as they are, as a matrix product: a row for every
// patch, whose inputs are the channels of its tokens, read where they lie. Sums are left in memory
// for what normalises them (linear_impl.h, patch_norm_impl.h), in as many parts as positions of the
// kernel were shared out to, so that few patches keep a GPU busy too.
#pragma once

#include "cuda/chunks.h"
#include "cuda/tokens.h"

namespace pvt::cuda {

struct ConvolveArgs {
  const void* x;  // channels of a token are adjacent
  int64_t image_bytes, row_bytes, column_bytes;
  int H, W;
  int kernel_size, stride, padding;
  const float* norm_weight;  // with kNorm
  const float* norm_bias;
  float eps;
  const char* weight;  // packed [C_out, kernel_size^2 * C]
  float* sums;         // [splits, rows, C_out]
  int64_t rows;        // B * out_H * out_W
  int out_H, out_W, C_out;
  int splits;
};

// A block has kTile * kWarps patches and kStrips strips of columns, for one split.
template <class scalar_t_, int C_, int kStrips_, bool kNorm_, int kWarps_, int kDepth_, int kSlots_>
struct ConvolveConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kStrips = kStrips_, kWarps = kWarps_, kSlots = kSlots_;
  static constexpr bool kNorm = kNorm_;
  static constexpr int kColumns = kStrips * kStrip, kRows = kTile * kWarps;
  static constexpr int kParts = C / kDepth_, kPartStrips = kDepth_ / kStrip;
  static constexpr int kSlotBytes = kStrips * kPartStrips * kSquare;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
};

// 16 patches: the rows of a product whose operands are one position's tokens.
template <class Warp>
class PatchRows {
 public:
  PVT_DEVICE PatchRows(const ConvolveArgs& args, int64_t first) : args_(args) {
    const auto lane = Warp::lane();
    const int64_t image_patches = int64_t{args.out_H} * args.out_W;
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      const auto patch = first + 8 * half + (lane >> 2);
      const auto image = patch / image_patches;
      const typename Warp::Index in_image = patch - image * image_patches;
      const auto i = in_image / args.out_W, j = in_image - i * args.out_W;
      row_[half] = i * args.stride - args.padding;
      column_[half] = j * args.stride - args.padding;
      image_[half] = image * args.image_bytes + ((lane & 3) << 4);
      exists_[half] = patch < args.rows;
    }
  }

  // Of the tokens at `position` = row * kernel_size + column of the kernel.
  PVT_DEVICE void move_to(int position) {
    kernel_row_ = position / args_.kernel_size;
    kernel_column_ = position - kernel_row_ * args_.kernel_size;
  }
  PVT_DEVICE typename Warp::Offset offset(int, int half) const {
    return image_[half] + (row_[half] + kernel_row_) * args_.row_bytes +
           (column_[half] + kernel_column_) * args_.column_bytes;
  }
  // Beside the padding.
  PVT_DEVICE typename Warp::Mask valid(int, int half) const {
    const auto row = row_[half] + kernel_row_, column = column_[half] + kernel_column_;
    return exists_[half] && -1 < row && row < args_.H && -1 < column && column < args_.W;
  }

 private:
  const ConvolveArgs& args_;
  typename Warp::Index row_[2], column_[2];
  typename Warp::Offset image_[2];
  typename Warp::Mask exists_[2];
  int kernel_row_ = 0, kernel_column_ = 0;
};

// Block index: [row group][column group][split].
template <class Config, class Block>
PVT_DEVICE void convolve(Block& block, const ConvolveArgs& args) {
  using Warp = typename Block::Warp;
  using scalar_t = typename Config::scalar_t;
  constexpr int kStrips = Config::kStrips, kTokenStrips = Config::C / kStrip;
  const int positions = args.kernel_size * args.kernel_size;
  const int64_t panel_bytes = int64_t{positions} * (Config::C / 2 * kPanelLine);
  const int split = static_cast<int>(block.index() % args.splits);
  const int begin = positions * split / args.splits, end = positions * (split + 1) / args.splits;
  const int64_t tile = block.index() / args.splits;
  const int groups = args.C_out / Config::kColumns;
  const int first_column = static_cast<int>(tile % groups) * Config::kColumns;
  const int64_t first = tile / groups * Config::kRows + block.warp() * kTile;

  const char* weight = args.weight + first_column / kPanel * panel_bytes +
                       int64_t{begin} * (Config::C / 2 * kPanelLine);
  const auto copy = [&](int chunk, char* slot) {
    copy_squares<kStrips, Config::kPartStrips>(
        block, slot, weight + int64_t{chunk} * (Config::kPartStrips * kStrip / 2 * kPanelLine),
        panel_bytes);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(
      block, (end - begin) * Config::kParts, copy);

  PatchRows<Warp> rows(args, first);
  const SquareReader<Warp> reader;
  Strip<Warp> sums[kStrips][1];
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) set_zero(sums[s][0]);
  PVT_NO_UNROLL for (int position = begin; position < end; ++position) {
    rows.move_to(position);
    const char* squares = nullptr;
    const auto multiply = [&](int token_strip, const Operand<Warp>(&tokens)[1]) {
      const int step = token_strip % Config::kPartStrips;
      if (step == 0)
        squares = chunks.next();
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        reader.template multiply<scalar_t>(sums[s], tokens,
                                           squares + (s * Config::kPartStrips + step) * kSquare);
      }
    };
    if constexpr (Config::kNorm) {
      each_normalised<scalar_t, kTokenStrips, Warp, 1>(args.x, rows, args.norm_weight,
                                                       args.norm_bias, args.eps, multiply);
    } else {
      Operand<Warp> tokens[kTokenStrips][1];
      load_rows(args.x, rows, tokens);
      PVT_UNROLL for (int s = 0; s < kTokenStrips; ++s) multiply(s, tokens[s]);
    }
  }

  float* out = args.sums + split * args.rows * args.C_out + first_column;
  PVT_UNROLL for (int half = 0; half < 2; ++half) {
    const auto row = first + 8 * half + (Warp::lane() >> 2);
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      PVT_UNROLL for (int c = 0; c < 8; c += 4) {
        typename Warp::Float four[4];
        PVT_UNROLL for (int i = 0; i < 4; ++i) four[i] = sums[s][0].at(half, c + i);
        Warp::store_floats(out,
                           row * int64_t{args.C_out} + ((Warp::lane() & 3) << 3) + s * kStrip + c,
                           four, row < args.rows);
      }
    }
  }
}

}  // namespace pvt::cuda
