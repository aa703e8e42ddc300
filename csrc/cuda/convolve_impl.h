// A convolution of tokens, on their LayerNorm or as they are, as a matrix product: a row for every
// patch, whose inputs are the channels of its tokens, read where they lie. Sums are left in memory
// for what normalises them (linear_impl.h, patch_norm_impl.h), in as many parts as positions of the
// kernel were shared out to, so that few patches keep a GPU busy too; or a block finishes its rows.
#pragma once

#include "cuda/chunks.h"
#include "cuda/patch_end.h"

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
  float* sums;         // [splits, rows, C_out], or null: blocks have all columns and one split
  int64_t rows;        // B * out_H * out_W
  int out_H, out_W, C_out;
  int splits;
  PatchEnd end;  // where sums is null; not with kNorm
};

// A block has kTiles tiles of patches per warp and kStrips strips of columns, for one split;
// weights come kDepth inputs at a time.
template <class scalar_t_, int C_, bool kNorm_, int kTiles_, int kStrips_, int kWarps_, int kDepth_,
          int kSlots_>
struct ConvolveConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kTiles = kTiles_, kStrips = kStrips_, kWarps = kWarps_;
  static constexpr int kSlots = kSlots_;
  static constexpr bool kNorm = kNorm_;
  static constexpr int kColumns = kStrips * kStrip, kRows = kTiles * kTile * kWarps;
  static constexpr int kParts = C / kDepth_, kPartStrips = kDepth_ / kStrip;
  static constexpr int kSlotBytes = kStrips * kPartStrips * kSquare;
  static constexpr int kSharedBytes = kSlots * kSlotBytes;
  static constexpr int kBlocks = kTiles == 1 ? 3 : 2;  // that a multiprocessor has registers for
};

// Tiles of patches: the rows of a product whose operands are one position's tokens.
template <class Warp, int kTiles>
class PatchRows {
 public:
  PVT_DEVICE PatchRows(const ConvolveArgs& args, int64_t first) : args_(args) {
    const auto lane = Warp::lane();
    const int64_t image_patches = int64_t{args.out_H} * args.out_W;
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        const auto patch = first + tile * kTile + 8 * half + (lane >> 2);
        const auto image = patch / image_patches;
        const typename Warp::Index in_image = patch - image * image_patches;
        const auto i = in_image / args.out_W, j = in_image - i * args.out_W;
        const typename Warp::Index row = i * args.stride - args.padding;
        column_[tile][half] = j * args.stride - args.padding;
        offset_[tile][half] = image * args.image_bytes + row * args.row_bytes +
                              column_[tile][half] * args.column_bytes + ((lane & 3) << 4);
        // A patch that does not exist has no rows of the image.
        row_[tile][half] = Warp::select(patch < args.rows, row, typename Warp::Index(INT32_MIN));
      }
    }
  }

  // Of the tokens at `position` = row * kernel_size + column of the kernel.
  PVT_DEVICE void move_to(int position) {
    kernel_row_ = position / args_.kernel_size;
    kernel_column_ = position - kernel_row_ * args_.kernel_size;
    distance_ = kernel_row_ * args_.row_bytes + kernel_column_ * args_.column_bytes;
  }
  PVT_DEVICE typename Warp::Offset offset(int tile, int half) const {
    return offset_[tile][half] + distance_;
  }
  // Beside the padding.
  PVT_DEVICE typename Warp::Mask valid(int tile, int half) const {
    const auto row = row_[tile][half] + kernel_row_, column = column_[tile][half] + kernel_column_;
    return -1 < row && row < args_.H && -1 < column && column < args_.W;
  }

 private:
  const ConvolveArgs& args_;
  typename Warp::Index row_[kTiles][2], column_[kTiles][2];
  typename Warp::Offset offset_[kTiles][2];  // of the patch's first token
  int64_t distance_ = 0;                     // from there
  int kernel_row_ = 0, kernel_column_ = 0;
};

// args.sums of a split, rows `first` and on, columns `column` and on <- sums.
template <class Warp, int kStrips, int kTiles>
PVT_DEVICE void store_sums(const ConvolveArgs& args, int split, int64_t first, int column,
                           Strip<Warp> (&sums)[kStrips][kTiles]) {
  float* out = args.sums + split * args.rows * args.C_out + column;
  PVT_UNROLL for (int i = 0; i < kTiles; ++i) {
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      const auto row = first + i * kTile + 8 * half + (Warp::lane() >> 2);
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        PVT_UNROLL for (int c = 0; c < 8; c += 4) {
          typename Warp::Float four[4];
          PVT_UNROLL for (int j = 0; j < 4; ++j) four[j] = sums[s][i].at(half, c + j);
          Warp::store_floats(out,
                             row * int64_t{args.C_out} + ((Warp::lane() & 3) << 3) + s * kStrip + c,
                             four, row < args.rows);
        }
      }
    }
  }
}

// What a block does: of patches `first` and on and columns `first_column` and on, positions
// begin .. end - 1 of the kernel. Block index: [row group][column group][split].
template <class Config>
struct ConvolvePart {
  PVT_DEVICE ConvolvePart(int64_t block, const ConvolveArgs& args)
      : split(static_cast<int>(block % args.splits)) {
    const int positions = args.kernel_size * args.kernel_size;
    begin = positions * split / args.splits, end = positions * (split + 1) / args.splits;
    const int64_t tile = block / args.splits;
    const int groups = args.C_out / Config::kColumns;
    first_column = static_cast<int>(tile % groups) * Config::kColumns;
    first = tile / groups * Config::kRows;
    panel_bytes = int64_t{positions} * (Config::C / 2 * kPanelLine);
    weight = args.weight + first_column / kPanel * panel_bytes +
             int64_t{begin} * (Config::C / 2 * kPanelLine);
  }

  int split, begin, end, first_column;
  int64_t first;
  const char* weight;  // of the first panel, the next one panel_bytes after it
  int64_t panel_bytes;
};

template <class Config, class Block>
PVT_DEVICE void convolve(Block& block, const ConvolveArgs& args) {
  using Warp = typename Block::Warp;
  using scalar_t = typename Config::scalar_t;
  constexpr int kStrips = Config::kStrips, kTiles = Config::kTiles;
  constexpr int kPartStrips = Config::kPartStrips;
  const ConvolvePart<Config> mine(block.index(), args);
  const int64_t first = mine.first + block.warp() * (kTiles * kTile);
  const int positions = args.kernel_size * args.kernel_size, end = mine.end;
  const auto copy = [&](int chunk, char* slot) {
    copy_squares<kStrips, kPartStrips>(
        block, slot, mine.weight + int64_t{chunk} * (kPartStrips * kStrip / 2 * kPanelLine),
        int64_t{Warp::opaque(positions)} * (Config::C / 2 * kPanelLine));
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(
      block, (end - mine.begin) * Config::kParts, copy);

  PatchRows<Warp, kTiles> rows(args, first);
  const SquareReader<Warp> reader;
  Strip<Warp> sums[kStrips][kTiles];
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    PVT_UNROLL for (int i = 0; i < kTiles; ++i) set_zero(sums[s][i]);
  }
  Operand<Warp> coming[kPartStrips][kTiles];
  const auto load_part = [&](int part) {
    PVT_UNROLL for (int step = 0; step < kPartStrips; ++step) {
      load_strip(args.x, rows, part * kPartStrips + step, coming[step]);
    }
  };
  rows.move_to(mine.begin);
  load_part(0);
  PVT_NO_UNROLL for (int position = mine.begin; position < end; ++position) {
    const auto norm = [&] {
      if constexpr (!Config::kNorm) {
        return 0;
      } else if constexpr (Config::kParts == 1) {
        return RowNorm<scalar_t, Warp, kTiles>(coming, args.eps);
      } else {
        return RowNorm<scalar_t, Warp, kTiles>(args.x, rows, Config::C, args.eps);
      }
    }();
    PVT_NO_UNROLL for (int part = 0; part < Config::kParts; ++part) {
      Operand<Warp> tokens[kPartStrips][kTiles];
      PVT_UNROLL for (int step = 0; step < kPartStrips; ++step) {
        PVT_UNROLL for (int i = 0; i < kTiles; ++i) tokens[step][i] = coming[step][i];
        if constexpr (Config::kNorm) {
          const int channel = (part * kPartStrips + step) * kStrip;
          norm.apply(args.norm_weight + channel, args.norm_bias + channel, tokens[step]);
        }
      }
      if (part + 1 < Config::kParts) {
        load_part(part + 1);
      } else if (position + 1 < end) {
        rows.move_to(position + 1);
        load_part(0);
      }
      const char* const squares = chunks.next();
      PVT_UNROLL for (int step = 0; step < kPartStrips; ++step) {
        PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
          reader.template multiply<scalar_t>(sums[s], tokens[step],
                                             squares + (s * kPartStrips + step) * kSquare);
        }
      }
    }
  }
  if constexpr (!Config::kNorm) {
    if (args.sums == nullptr)
      return finish_rows<scalar_t>(args.end, first, args.rows, sums);
  }

  store_sums(args, mine.split, first, mine.first_column, sums);
}

}  // namespace pvt::cuda
