// patch_embed of an image, whose few channels lie far apart: the convolution, the LayerNorm of it
// and positions, in one kernel. A warp has all columns of its patches, and all weights stay with a
// block.
#pragma once

#include "cuda/tokens.h"

namespace pvt::cuda {

// Their numbers are divided, in 32 bits.
constexpr int64_t kMaxPatches = INT32_MAX / 2;

struct ImageEmbedArgs {
  const void* x;  // [B, C_in, H, W]
  int64_t image_bytes, channel_bytes, row_bytes, column_bytes;
  int C_in, H, W;
  int kernel_size, stride, padding;
  const char* weight;  // packed [C, inputs], channels innermost
  const float* bias;
  const float* norm_weight;
  const float* norm_bias;
  float eps;
  const float* position;  // [out_H * out_W, C], or null
  void* out;              // [rows, C]
  int64_t rows;           // B * out_H * out_W, at most kMaxPatches
  int out_H, out_W;

  PVT_HOST_DEVICE int inputs() const { return kernel_size * kernel_size * C_in; }
  PVT_HOST_DEVICE int input_strips() const { return (inputs() + kStrip - 1) / kStrip; }

  // Whether rows of a patch are fours of pixels that lie together, in the image and on 8 bytes.
  bool has_quads() const {
    const auto whole = [](int64_t bytes) { return bytes % 8 == 0; };
    return kernel_size % 4 == 0 && stride % 4 == 0 && padding == 0 && column_bytes == 2 &&
           whole(row_bytes) && whole(channel_bytes) && whole(image_bytes) &&
           whole(reinterpret_cast<intptr_t>(x));
  }
};

// kQuads: pixels are read four at a time, if args.has_quads()
template <class scalar_t_, int C_, bool kQuads_, int kWarps_>
struct ImageEmbedConfig {
  using scalar_t = scalar_t_;
  static constexpr int C = C_, kStrips = C / kStrip, kWarps = kWarps_;
  static constexpr bool kQuads = kQuads_;
};

// Where an input of a patch is, from the patch's first pixel. Inputs of a kernel's row follow each
// other here, those of a channel too.
struct alignas(8) ImageInput {
  int offset;           // bytes
  int16_t row, column;  // of the kernel
};

// A lane reads the eight inputs of its channels; the gap after them keeps the four lanes of a row
// apart in the banks of shared memory.
constexpr int kInputsGap = 2;
constexpr int kStripInputs = 4 * (8 + kInputsGap);

// For patches of so many strips of inputs.
template <class Config>
constexpr int image_embed_shared_bytes(int input_strips) {
  return input_strips *
         (Config::kStrips * kSquare + kStripInputs * static_cast<int>(sizeof(ImageInput)));
}

// Fills both parts of shared memory: squares [strip of inputs][strip of columns], then the inputs.
template <class Config, class Block>
PVT_DEVICE void bring_weights(Block& block, const ImageEmbedArgs& args, char* squares,
                              ImageInput* table) {
  const int inputs = args.inputs(), area = args.kernel_size * args.kernel_size;
  const int64_t panel_bytes = int64_t{(inputs + 1) / 2} * kPanelLine;
  // 16 bits of the panel's first column; zero if there is no such input.
  const auto weight_of = [&](int input, const char* panel) -> uint32_t {
    const int channel = input / area, position = input - channel * area;
    const int packed = position * args.C_in + channel;
    return input < inputs ? *reinterpret_cast<const uint16_t*>(panel + packed / 2 * kPanelLine +
                                                               packed % 2 * 2)
                          : 0;
  };
  block.each_thread([&](int thread) {
    for (int strip = 0; strip < args.input_strips(); ++strip) {
      PVT_UNROLL for (int word = 0; word < kSquareWords; word += Block::kThreads) {
        const int input = strip * kStrip + 2 * pair_of_word<Inputs::kAdjacent>(thread + word);
        PVT_UNROLL for (int s = 0; s < Config::kStrips; ++s) {
          const char* const column =
              args.weight + column_of_word(thread + word, panel_bytes) + s * 2 * panel_bytes;
          *reinterpret_cast<uint32_t*>(squares + (strip * Config::kStrips + s) * kSquare +
                                       target_of_word(thread + word)) =
              weight_of(input, column) | weight_of(input + 1, column) << 16;
        }
      }
    }
    for (int input = thread; input < args.input_strips() * kStrip; input += Block::kThreads) {
      // What only fills a strip is the first one again, with a weight of zero.
      const int number = input < inputs ? input : 0;
      const int channel = number / area, position = number - channel * area;
      const int row = position / args.kernel_size, column = position - row * args.kernel_size;
      ImageInput& entry = table[input / 8 * (8 + kInputsGap) + input % 8];
      entry.offset = static_cast<int>(row * args.row_bytes + column * args.column_bytes +
                                      channel * args.channel_bytes);
      entry.row = static_cast<int16_t>(row);
      entry.column = static_cast<int16_t>(column);
    }
  });
  block.sync();
}

// 16 patches, and where their first pixels are. (As PatchRows; one class for both takes up to 26
// more registers of the convolution.)
template <class Warp>
class ImagePatches {
 public:
  PVT_DEVICE ImagePatches(const ImageEmbedArgs& args, int64_t first) : args_(args) {
    const auto lane = Warp::lane();
    const int image_patches = args.out_H * args.out_W;
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      const typename Warp::Index patch = first + 8 * half + (lane >> 2);
      const auto image = patch / image_patches, in_image = patch - image * image_patches;
      const auto i = in_image / args.out_W, j = in_image - i * args.out_W;
      row_[half] = i * args.stride - args.padding;
      column_[half] = j * args.stride - args.padding;
      first_pixel_[half] = image * args.image_bytes + row_[half] * args.row_bytes +
                           column_[half] * args.column_bytes;
      in_image_[half] = in_image;
      exists_[half] = patch < args.rows;
    }
  }

  // The lane's eight inputs of a strip, zeros beside the image.
  PVT_DEVICE void load(const ImageInput* strip_inputs, Operand<Warp>& operand) const {
    const auto group = (Warp::lane() & 3) * (8 + kInputsGap);
    PVT_UNROLL for (int i = 0; i < 4; ++i) {
      const auto pair = Warp::load_shared(reinterpret_cast<const char*>(strip_inputs),
                                          (group + 2 * i) * static_cast<int>(sizeof(ImageInput)));
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        typename Warp::Word words[2];
        PVT_UNROLL for (int c = 0; c < 2; ++c) {
          const auto place = pair.word[2 * c + 1];
          const typename Warp::Index row = row_[half] + (place & 0xffffu);
          const typename Warp::Index column = column_[half] + (place >> 16);
          words[c] = Warp::load_16_bits(
              args_.x, first_pixel_[half] + typename Warp::Index(pair.word[2 * c]),
              exists_[half] && -1 < row && row < args_.H && -1 < column && column < args_.W);
        }
        operand.pair(half, i) = words[0] + (words[1] << 16);
      }
    }
  }

  // The same, four at a time.
  PVT_DEVICE void load_quads(const ImageInput* strip_inputs, Operand<Warp>& operand) const {
    const auto group = (Warp::lane() & 3) * (8 + kInputsGap);
    PVT_UNROLL for (int i = 0; i < 4; i += 2) {
      const auto pair = Warp::load_shared(reinterpret_cast<const char*>(strip_inputs),
                                          (group + 2 * i) * static_cast<int>(sizeof(ImageInput)));
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        Warp::load_two(args_.x, first_pixel_[half] + typename Warp::Index(pair.word[0]),
                       operand.pair(half, i), operand.pair(half, i + 1), exists_[half]);
      }
    }
  }

  // Adds columns [32 s, 32 s + 32) of the position table, which has C.
  template <int C>
  PVT_DEVICE void add_positions(int s, Strip<Warp>& strip) const {
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      add_floats(args_.position,
                 in_image_[half] * int64_t{C} + ((Warp::lane() & 3) << 3) + s * kStrip,
                 exists_[half], half, strip);
    }
  }

 private:
  const ImageEmbedArgs& args_;
  typename Warp::Index row_[2], column_[2], in_image_[2];
  typename Warp::Offset first_pixel_[2];
  typename Warp::Mask exists_[2];
};

// Warps take 16 patches at a time, as long as there are some.
template <class Config, class Block>
PVT_DEVICE void image_embed(Block& block, const ImageEmbedArgs& args) {
  using Warp = typename Block::Warp;
  using scalar_t = typename Config::scalar_t;
  constexpr int kStrips = Config::kStrips, C = Config::C;
  char* const squares = block.shared();
  ImageInput* const table =
      reinterpret_cast<ImageInput*>(squares + args.input_strips() * kStrips * kSquare);
  bring_weights<Config>(block, args, squares, table);

  const SquareReader<Warp> reader;
  const int64_t tiles = (args.rows + kTile - 1) / kTile;
  int64_t tile = block.index() * Config::kWarps + block.warp();
  PVT_NO_UNROLL for (; tile < tiles; tile += block.count() * Config::kWarps) {
    const ImagePatches<Warp> patches(args, tile * kTile);
    Strip<Warp> sums[kStrips][1];
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      sums[s][0] = bias_strip<Warp>(args.bias + s * kStrip);
    }
    PVT_NO_UNROLL for (int strip = 0; strip < args.input_strips(); ++strip) {
      Operand<Warp> inputs[1];
      if constexpr (Config::kQuads) {
        patches.load_quads(table + strip * kStripInputs, inputs[0]);
      } else {
        patches.load(table + strip * kStripInputs, inputs[0]);
      }
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        reader.template multiply<scalar_t>(sums[s], inputs,
                                           squares + (strip * kStrips + s) * kSquare);
      }
    }
    normalise(sums, args.norm_weight, args.norm_bias, args.eps);
    const AdjacentRows<Warp> rows{tile * kTile, args.rows, C};
    PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
      if (args.position != nullptr)
        patches.template add_positions<C>(s, sums[s][0]);
      store_strip<scalar_t>(args.out, rows, s, sums[s]);
    }
  }
}

}  // namespace pvt::cuda
