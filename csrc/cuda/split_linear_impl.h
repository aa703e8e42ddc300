// A linear layer of few rows, after a LayerNorm or not. There are not enough blocks then to hide
// each other's waiting, so a block has to be done soon: the inputs of a row, in strips of 32, are
// split kWays ways, one for each warp, whose sums are added up in the end.
#pragma once

#include "cuda/linear_impl.h"
#include "cuda/streamed_linear_impl.h"

namespace pvt::cuda {

// A block has kTiles tiles of rows and a strip of columns. Of weights come kWays strips of inputs
// at a time, one for each warp.
template <class scalar_t_, Then kThen_, int kTiles_, int kWays_, int kSlots_>
struct SplitConfig {
  using scalar_t = scalar_t_;
  static constexpr Then kThen = kThen_;
  static constexpr int kTiles = kTiles_, kWays = kWays_, kWarps = kWays, kSlots = kSlots_;
  static constexpr int kRows = kTiles * kTile, kColumns = kStrip;
  static constexpr int kSlotBytes = kWays * kSquare, kWeightBytes = kSlots * kSlotBytes;
  static constexpr int kSumBytes = 4 * kLanes * kVector;  // of a strip
  static_assert(kWays * kTiles * kSumBytes <= kWeightBytes, "sums take the place of weights");
  static_assert(kTiles <= kWays, "a warp finishes a tile");
};

// As it is, of any number of inputs.
template <class scalar_t, Then kThen, int kTiles, int kWays, int kSlots>
struct SplitStreamedConfig : SplitConfig<scalar_t, kThen, kTiles, kWays, kSlots> {
  static constexpr int kSharedBytes = SplitStreamedConfig::kWeightBytes;
};

// After a LayerNorm of C channels.
template <class scalar_t, int C_, Source kSource_, Then kThen, int kTiles, int kWays, int kSlots>
struct SplitLinearConfig : SplitConfig<scalar_t, kThen, kTiles, kWays, kSlots> {
  static constexpr int C = C_, kStrips = C / kStrip, kSteps = (kStrips + kWays - 1) / kWays;
  static constexpr Source kSource = kSource_;
  static constexpr int kMomentBytes = kLanes / 4 * kVector;  // of a tile, beside the weights
  static constexpr int kSharedBytes =
      SplitLinearConfig::kWeightBytes + kWays * kTiles * kMomentBytes;
  static_assert(kWays <= kStrips, "every warp has a strip");
};

// What a warp does: of rows `first` and on and columns `column` and on, inputs of strips way,
// way + kWays and so on. Block index: [row group][strip of columns].
template <class Config, class Block>
struct SplitPart {
  PVT_DEVICE SplitPart(Block& block, int columns) : way(block.warp()) {
    const int index = static_cast<int>(block.index()), groups = columns / kStrip;
    column = index % groups * kStrip;
    first = index / groups * int64_t{Config::kRows};
  }

  int way, column;
  int64_t first;
};

// Starts the copy of the strips of one chunk, as far as there are that many.
//   from: the packed weights of a strip of columns, `strips` strips of inputs
template <int kWays, class Block>
PVT_DEVICE void copy_ways(Block& block, char* slot, const char* from, int chunk, int strips) {
  constexpr int kStripBytes = kStrip / 2 * kPanelLine;
  const int64_t panel_bytes = int64_t{strips} * kStripBytes;
  PVT_UNROLL for (int way = 0; way < kWays; ++way) {
    const int strip = chunk * kWays + way;
    if (strip < strips) {
      copy_squares<1, 1>(block, slot + way * kSquare, from + int64_t{strip} * kStripBytes,
                         panel_bytes);
    }
  }
}

// ---- sums ----

// What the sums of a warp begin with: those of the tile that it will finish, its number, with the
// bias and what is there already; others with zeros.
template <class Config, class Block, class Args>
PVT_DEVICE void begin_sums(const SplitPart<Config, Block>& part, const Args& args,
                           Strip<typename Block::Warp> (&sums)[Config::kTiles]) {
  using Warp = typename Block::Warp;
  PVT_UNROLL for (int tile = 0; tile < Config::kTiles; ++tile) {
    set_zero(sums[tile]);
    if (part.way != tile)
      continue;
    Strip<Warp> start[1] = {bias_strip<Warp>(args.bias + part.column)};
    if constexpr (Config::kThen == Then::kAdd) {
      const AdjacentRows<Warp> rows{part.first + tile * kTile, args.rows, args.columns};
      Operand<Warp> there[1];
      load_strip(args.out, rows, part.column / kStrip, there);
      add_operands<typename Config::scalar_t>(start, there);
    }
    sums[tile] = start[0];
  }
}

// The warp of each tile adds the sums of the others, in their order, and puts what the layer gives.
template <class Config, class Block, class Args>
PVT_DEVICE void finish_sums(Block& block, const SplitPart<Config, Block>& part, const Args& args,
                            Strip<typename Block::Warp> (&sums)[Config::kTiles]) {
  using Warp = typename Block::Warp;
  using Float = typename Warp::Float;
  constexpr int kTiles = Config::kTiles;
  constexpr Then kThen = Config::kThen == Then::kAdd ? Then::kStore : Config::kThen;
  float* const memory = reinterpret_cast<float*>(block.shared());
  const auto place = [&](int way, int tile, int j) -> typename Warp::Offset {
    return (Warp::lane() + ((way * kTiles + tile) * 4 + j) * kLanes) * int64_t{4};
  };
  block.sync();  // for the last weights, which are in the place of sums
  PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
    if (part.way == tile)
      continue;
    PVT_UNROLL for (int j = 0; j < 4; ++j) {
      Warp::store_floats(memory, place(part.way, tile, j), sums[tile].sum[j], true);
    }
  }
  block.sync();
  PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
    if (part.way != tile)
      continue;
    PVT_UNROLL for (int way = 0; way < Config::kWays; ++way) {
      if (way == tile)
        continue;
      PVT_UNROLL for (int j = 0; j < 4; ++j) {
        Float other[4], (&sum)[4] = sums[tile].sum[j];
        Warp::load_floats(memory, place(way, tile, j), other);
        PVT_UNROLL for (int i = 0; i < 4; ++i) sum[i] = sum[i] + other[i];
      }
    }
    const AdjacentRows<Warp> rows{part.first + tile * kTile, args.rows, args.columns};
    Strip<Warp> result[1] = {sums[tile]};
    put_strip<typename Config::scalar_t, kThen>(args.out, rows, part.column / kStrip, result);
  }
}

// ---- as it is ----

// Inputs of a warp are on their way while kSlots - 1 chunks before them are multiplied, as weights
// are.   args: without those of a LayerNorm
template <class Config, class Block>
PVT_DEVICE void split_streamed_linear(Block& block, const StreamedLinearArgs& args) {
  using Warp = typename Block::Warp;
  constexpr int kTiles = Config::kTiles, kWays = Config::kWays, kAhead = Config::kSlots - 1;
  const SplitPart<Config, Block> part(block, args.columns);
  const int strips = args.depth / kStrip, count = (strips + kWays - 1) / kWays;
  const char* const weight = args.weight + int64_t{part.column} * args.depth * 2;
  const auto copy = [&](int chunk, char* slot) {
    copy_ways<kWays>(block, slot, weight, chunk, strips);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(block, count,
                                                                                  copy);
  const AdjacentRows<Warp> rows{part.first, args.rows, args.depth};
  Operand<Warp> coming[kAhead][kTiles];
  const auto load = [&](int chunk, Operand<Warp>(&to)[kTiles]) {
    const int strip = chunk * kWays + part.way;
    if (strip < strips)
      load_strip(args.x, rows, strip, to);
  };
  PVT_UNROLL for (int i = 0; i < kAhead; ++i) load(i, coming[i]);
  Strip<Warp> sums[kTiles];
  begin_sums<Config>(part, args, sums);
  const SquareReader<Warp> reader;
  PVT_NO_UNROLL for (int first = 0; first < count; first += kAhead) {
    PVT_UNROLL for (int i = 0; i < kAhead; ++i) {
      const int chunk = first + i;
      if (chunk >= count)
        continue;
      const char* const squares = chunks.next();
      if (chunk * kWays + part.way < strips) {
        reader.template multiply<typename Config::scalar_t>(sums, coming[i],
                                                            squares + part.way * kSquare);
      }
      load(chunk + kAhead, coming[i]);
    }
  }
  finish_sums<Config>(block, part, args, sums);
}

// ---- after a LayerNorm ----

// The inputs of a warp as they become operands: tokens, or sums; their part of the LayerNorm.
template <class Config, class Block>
class SplitInputs {
 public:
  using Warp = typename Block::Warp;
  using Float = typename Warp::Float;
  using scalar_t = typename Config::scalar_t;
  static constexpr int kTiles = Config::kTiles, kWays = Config::kWays, kSteps = Config::kSteps;

  // All of them on their way, and the parameters of the LayerNorm.
  PVT_DEVICE SplitInputs(const LinearArgs& args, const SplitPart<Config, Block>& part)
      : way_(part.way) {
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) set_zero(inputs_[step][tile]);
    }
    if constexpr (Config::kSource == Source::kTokens) {
      load_tokens(args, part.first);
    } else {
      load_sums(args, part.first);
    }
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
      if (has(step)) {
        load_channels<Warp>(args.norm_weight + channel(step), weight_[step]);
        load_channels<Warp>(args.norm_bias + channel(step), bias_[step]);
      }
    }
  }

  // Whether the warp has a strip at a step.
  PVT_DEVICE bool has(int step) const {
    return (step + 1) * kWays <= Config::kStrips || step * kWays + way_ < Config::kStrips;
  }

  // Of rows of which each warp has a part, by its mean m_i and its sum of squares q_i from that:
  // m = sum n_i m_i / n and q = sum q_i + n_i (m_i - m)^2.
  PVT_DEVICE void normalise(Block& block, float eps) {
    float* const memory = reinterpret_cast<float*>(block.shared() + Config::kWeightBytes);
    const auto place = [&](int way, int tile) -> typename Warp::Offset {
      return ((Warp::lane() >> 2) + (way * kTiles + tile) * (kLanes / 4)) * int64_t{4};
    };
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      Float moments[4];  // of rows g and g + 8: both means, both sums of squares
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        moments[half] = mean_of_part(tile, half);
        moments[2 + half] = squares_of_part(tile, half, moments[half]);
      }
      Warp::store_floats(memory, place(way_, tile), moments, (Warp::lane() & 3) < 1);
    }
    block.sync();
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      Float mean[2] = {Float(0.f), Float(0.f)}, squares[2] = {Float(0.f), Float(0.f)};
      PVT_UNROLL for (int way = 0; way < kWays; ++way) {
        Float moments[4];
        Warp::load_floats(memory, place(way, tile), moments);
        const Float share = Float(static_cast<float>(strips_of(way)) / Config::kStrips);
        PVT_UNROLL for (int half = 0; half < 2; ++half) {
          mean[half] = Warp::fma(moments[half], share, mean[half]);
        }
      }
      PVT_UNROLL for (int way = 0; way < kWays; ++way) {
        Float moments[4];
        Warp::load_floats(memory, place(way, tile), moments);
        const Float count = Float(static_cast<float>(strips_of(way) * kStrip));
        PVT_UNROLL for (int half = 0; half < 2; ++half) {
          const Float difference = moments[half] - mean[half];
          squares[half] =
              squares[half] + Warp::fma(difference * difference, count, moments[2 + half]);
        }
      }
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        const Float scale =
            Warp::rsqrt(Warp::fma(squares[half], Float(1.f / Config::C), Float(eps)));
        apply(tile, half, mean[half], scale);
      }
    }
  }

  PVT_DEVICE void round_step(int step, Operand<Warp> (&operands)[kTiles]) {
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      if constexpr (Config::kSource == Source::kActiveSums)
        apply_gelu<scalar_t>(inputs_[step][tile]);
      round<scalar_t>(inputs_[step][tile], operands[tile]);
    }
  }

 private:
  PVT_DEVICE int channel(int step) const { return (step * kWays + way_) * kStrip; }
  static PVT_DEVICE int strips_of(int way) {
    return Config::kStrips / kWays + (way < Config::kStrips % kWays ? 1 : 0);
  }

  PVT_DEVICE void load_tokens(const LinearArgs& args, int64_t first) {
    const AdjacentRows<Warp> rows{first, args.rows, Config::C};
    Operand<Warp> tokens[kSteps][kTiles];
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
      if (has(step))
        load_strip(args.x, rows, channel(step) / kStrip, tokens[step]);
    }
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
      if (has(step))
        add_operands<scalar_t>(inputs_[step], tokens[step]);
    }
  }

  // The bias and all splits, in their order.
  PVT_DEVICE void load_sums(const LinearArgs& args, int64_t first) {
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        if (has(step))
          inputs_[step][tile] = bias_strip<Warp>(args.sums_bias + channel(step));
      }
    }
    for (int split = 0; split < args.splits; ++split) {
      const float* const x = static_cast<const float*>(args.x) + split * args.rows * Config::C;
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        PVT_UNROLL for (int half = 0; half < 2; ++half) {
          const auto row = first + tile * kTile + 8 * half + (Warp::lane() >> 2);
          PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
            if (has(step)) {
              add_floats(x, row * int64_t{Config::C} + ((Warp::lane() & 3) << 3) + channel(step),
                         row < args.rows, half, inputs_[step][tile]);
            }
          }
        }
      }
    }
  }

  PVT_DEVICE Float mean_of_part(int tile, int half) {
    Float sum = Float(0.f);
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {  // zeros where there is no strip
      PVT_UNROLL for (int c = 0; c < 8; ++c) sum = sum + inputs_[step][tile].at(half, c);
    }
    return sum_of_row<Warp>(sum) * Float(1.f / static_cast<float>(strips_of(way_) * kStrip));
  }
  PVT_DEVICE Float squares_of_part(int tile, int half, const Float& mean) {
    Float squares = Float(0.f);
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
      if (!has(step))
        continue;
      PVT_UNROLL for (int c = 0; c < 8; ++c) {
        const Float difference = inputs_[step][tile].at(half, c) - mean;
        squares = Warp::fma(difference, difference, squares);
      }
    }
    return sum_of_row<Warp>(squares);
  }
  PVT_DEVICE void apply(int tile, int half, const Float& mean, const Float& scale) {
    PVT_UNROLL for (int step = 0; step < kSteps; ++step) {
      if (!has(step))
        continue;
      PVT_UNROLL for (int c = 0; c < 8; ++c) {
        Float& value = inputs_[step][tile].at(half, c);
        value = Warp::fma((value - mean) * scale, weight_[step][c], bias_[step][c]);
      }
    }
  }

  int way_;
  Strip<Warp> inputs_[kSteps][kTiles];
  Float weight_[kSteps][8], bias_[kSteps][8];
};

template <class Config, class Block>
PVT_DEVICE void split_linear(Block& block, const LinearArgs& args) {
  using Warp = typename Block::Warp;
  constexpr int kTiles = Config::kTiles;
  const SplitPart<Config, Block> part(block, args.columns);
  const char* const weight = args.weight + int64_t{part.column} * (Config::C * 2);
  const auto copy = [&](int chunk, char* slot) {
    copy_ways<Config::kWays>(block, slot, weight, chunk, Config::kStrips);
  };
  PassingChunks<Config::kSlots, Config::kSlotBytes, Block, decltype(copy)> chunks(
      block, Config::kSteps, copy);
  SplitInputs<Config, Block> inputs(args, part);
  Strip<Warp> sums[kTiles];
  begin_sums<Config>(part, args, sums);
  inputs.normalise(block, args.eps);
  const SquareReader<Warp> reader;
  PVT_UNROLL for (int step = 0; step < Config::kSteps; ++step) {
    Operand<Warp> operands[kTiles];
    inputs.round_step(step, operands);
    const char* const squares = chunks.next();
    if (inputs.has(step)) {
      reader.template multiply<typename Config::scalar_t>(sums, operands,
                                                          squares + part.way * kSquare);
    }
  }
  finish_sums<Config>(block, part, args, sums);
}

}  // namespace pvt::cuda
