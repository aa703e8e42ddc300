// Rows of tokens between memory and registers. Lanes hold channels as strips.h says.
#pragma once

#include "cuda/strips.h"

namespace pvt::cuda {

// The sum of what the four lanes of a row have; every one of them gets it.
template <class Warp>
PVT_DEVICE typename Warp::Float sum_of_row(typename Warp::Float value) {
  value = value + Warp::exchange(value, 1);
  return value + Warp::exchange(value, 2);
}

// Rows of C 16-bit numbers that follow each other, kTile to a tile. Rows beyond the last are zeros
// when read and are not written.
template <class Warp>
struct AdjacentRows {
  int64_t first, rows;
  int C;  // a multiple of kStrip

  // Byte of the lane's first channel in row g + 8 half of a tile.
  PVT_DEVICE typename Warp::Offset offset(int tile, int half) const {
    const auto lane = Warp::lane();
    return (first + tile * kTile + 8 * half + (lane >> 2)) * (int64_t{2} * C) + ((lane & 3) << 4);
  }
  PVT_DEVICE typename Warp::Mask valid(int tile, int half) const {
    return first + tile * kTile + 8 * half + (Warp::lane() >> 2) < rows;
  }
};

// Channels [32 s, 32 s + 32) of the rows as they are. Rows: as AdjacentRows
template <class Warp, int kTiles, class Rows>
PVT_DEVICE void load_strip(const void* x, const Rows& rows, int s,
                           Operand<Warp> (&operands)[kTiles]) {
  PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      const auto v =
          Warp::load(x, rows.offset(tile, half) + s * 2 * kStrip, rows.valid(tile, half));
      PVT_UNROLL for (int i = 0; i < 4; ++i) operands[tile].pair(half, i) = v.word[i];
    }
  }
}

template <class Warp, int kStrips, int kTiles, class Rows>
PVT_DEVICE void load_rows(const void* x, const Rows& rows,
                          Operand<Warp> (&operands)[kStrips][kTiles]) {
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) load_strip(x, rows, s, operands[s]);
}

// The LayerNorm of rows. Mean and variance in float32, the variance from what is left of the mean.
template <class scalar_t, class Warp, int kTiles>
class RowNorm {
 public:
  using Float = typename Warp::Float;

  RowNorm() = default;  // of no rows yet

  // Of rows in registers: one after the other, so that few sums need some too.
  template <int kStrips>
  PVT_DEVICE RowNorm(Operand<Warp> (&rows)[kStrips][kTiles], float eps) {
    constexpr float kShare = 1.f / (kStrips * kStrip);
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        Float sum = Float(0.f), squares = Float(0.f);
        PVT_UNROLL for (int s = 0; s < kStrips; ++s) add(rows[s][tile], half, sum);
        const Float mean = sum_of_row<Warp>(sum) * Float(kShare);
        PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
          add_squares(rows[s][tile], half, mean, squares);
        }
        finish(tile, half, mean, squares, kShare, eps);
      }
    }
  }
  // Of rows in memory, which are read twice, all at once: every four loads are waited for.
  template <class Rows>
  PVT_DEVICE RowNorm(const void* x, const Rows& rows, int channels, float eps) {
    const float share = 1.f / static_cast<float>(channels);
    Float sums[kTiles][2], squares[kTiles][2];
    const auto each = [&](const auto& visit) {
      PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        PVT_UNROLL for (int half = 0; half < 2; ++half) visit(tile, half);
      }
    };
    const auto each_strip = [&](const auto& visit) {
      PVT_UNROLL_BY(4) for (int s = 0; s < channels / kStrip; ++s) {
        Operand<Warp> strip[kTiles];
        load_strip(x, rows, s, strip);
        each([&](int tile, int half) { visit(strip[tile], tile, half); });
      }
    };
    each([&](int tile, int half) { sums[tile][half] = squares[tile][half] = Float(0.f); });
    each_strip(
        [&](Operand<Warp>& strip, int tile, int half) { add(strip, half, sums[tile][half]); });
    each([&](int tile, int half) {
      sums[tile][half] = sum_of_row<Warp>(sums[tile][half]) * Float(share);
    });
    each_strip([&](Operand<Warp>& strip, int tile, int half) {
      add_squares(strip, half, sums[tile][half], squares[tile][half]);
    });
    each([&](int tile, int half) {
      finish(tile, half, sums[tile][half], squares[tile][half], share, eps);
    });
  }

  // 32 channels of the rows, in place, with weight and bias of these.
  PVT_DEVICE void apply(const float* weight, const float* bias,
                        Operand<Warp> (&operands)[kTiles]) const {
    Float w[8], b[8];
    load_channels<Warp>(weight, w);
    load_channels<Warp>(bias, b);
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        PVT_UNROLL for (int i = 0; i < 4; ++i) {
          auto& word = operands[tile].pair(half, i);
          const Float low =
              (Warp::template low<scalar_t>(word) - mean_[tile][half]) * scale_[tile][half];
          const Float high =
              (Warp::template high<scalar_t>(word) - mean_[tile][half]) * scale_[tile][half];
          word = Warp::template pack<scalar_t>(Warp::fma(low, w[2 * i], b[2 * i]),
                                               Warp::fma(high, w[2 * i + 1], b[2 * i + 1]));
        }
      }
    }
  }

 private:
  static PVT_DEVICE void add(Operand<Warp>& strip, int half, Float& sum) {
    PVT_UNROLL for (int i = 0; i < 4; ++i) {
      const auto word = strip.pair(half, i);
      sum = sum + (Warp::template low<scalar_t>(word) + Warp::template high<scalar_t>(word));
    }
  }
  static PVT_DEVICE void add_squares(Operand<Warp>& strip, int half, const Float& mean,
                                     Float& squares) {
    PVT_UNROLL for (int i = 0; i < 4; ++i) {
      const auto word = strip.pair(half, i);
      const Float low = Warp::template low<scalar_t>(word) - mean;
      const Float high = Warp::template high<scalar_t>(word) - mean;
      squares = Warp::fma(high, high, Warp::fma(low, low, squares));
    }
  }
  PVT_DEVICE void finish(int tile, int half, const Float& mean, const Float& squares, float share,
                         float eps) {
    mean_[tile][half] = mean;
    scale_[tile][half] =
        Warp::rsqrt(Warp::fma(sum_of_row<Warp>(squares), Float(share), Float(eps)));
  }

  Float mean_[kTiles][2], scale_[kTiles][2];
};

// The same to every row of sums.   vector: [32 kStrips]
template <class Warp, int kStrips, int kTiles>
PVT_DEVICE void add_to_rows(Strip<Warp> (&strips)[kStrips][kTiles], const float* vector) {
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    typename Warp::Float channels[8];
    load_channels<Warp>(vector + s * kStrip, channels);
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        PVT_UNROLL for (int c = 0; c < 8; ++c) {
          strips[s][tile].at(half, c) = strips[s][tile].at(half, c) + channels[c];
        }
      }
    }
  }
}

// The LayerNorm of sums, in place.
template <class Warp, int kStrips, int kTiles>
PVT_DEVICE void normalise(Strip<Warp> (&strips)[kStrips][kTiles], const float* weight,
                          const float* bias, float eps) {
  using Float = typename Warp::Float;
  constexpr float kShare = 1.f / (kStrips * kStrip);
  Float mean[kTiles][2], scale[kTiles][2];
  PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      Float sum = Float(0.f), squares = Float(0.f);
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        PVT_UNROLL for (int c = 0; c < 8; ++c) sum = sum + strips[s][tile].at(half, c);
      }
      mean[tile][half] = sum_of_row<Warp>(sum) * Float(kShare);
      PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
        PVT_UNROLL for (int c = 0; c < 8; ++c) {
          const Float difference = strips[s][tile].at(half, c) - mean[tile][half];
          squares = Warp::fma(difference, difference, squares);
        }
      }
      scale[tile][half] =
          Warp::rsqrt(Warp::fma(sum_of_row<Warp>(squares), Float(kShare), Float(eps)));
    }
  }
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    Float w[8], b[8];
    load_channels<Warp>(weight + s * kStrip, w);
    load_channels<Warp>(bias + s * kStrip, b);
    PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      PVT_UNROLL for (int half = 0; half < 2; ++half) {
        PVT_UNROLL for (int c = 0; c < 8; ++c) {
          const Float unit = (strips[s][tile].at(half, c) - mean[tile][half]) * scale[tile][half];
          strips[s][tile].at(half, c) = Warp::fma(unit, w[c], b[c]);
        }
      }
    }
  }
}

// Adds floats from `first` on, eight of the lane's, to row g + 8 half.
template <class Warp>
PVT_DEVICE void add_floats(const float* x, const typename Warp::Offset& first,
                           const typename Warp::Mask& valid, int half, Strip<Warp>& strip) {
  PVT_UNROLL for (int c = 0; c < 8; c += 4) {
    typename Warp::Float four[4];
    Warp::load_floats(x, first + c, four, valid);
    PVT_UNROLL for (int i = 0; i < 4; ++i) {
      strip.at(half, c + i) = strip.at(half, c + i) + four[i];
    }
  }
}

// LayerNorm of rows in memory, 32 channels at a time: use(s, operands). Long rows are read twice,
// the second time from the nearest cache, so that few numbers need registers at once.
template <class scalar_t, int kStrips, class Warp, int kTiles, class Rows, class Use>
PVT_DEVICE void each_normalised(const void* x, const Rows& rows, const float* weight,
                                const float* bias, float eps, const Use& use) {
  constexpr bool kTwice = kStrips * kTiles > 2;
  Operand<Warp> all[kStrips][kTiles];
  load_rows(x, rows, all);
  const RowNorm<scalar_t, Warp, kTiles> norm(all, eps);
  if constexpr (kTwice)
    Warp::forget_loads();
  PVT_UNROLL for (int s = 0; s < kStrips; ++s) {
    if constexpr (kTwice)
      load_strip(x, rows, s, all[s]);
    norm.apply(weight + s * kStrip, bias + s * kStrip, all[s]);
    use(s, all[s]);
  }
}

// y <- operands, channels [32 s, 32 s + 32) of every row.
template <class Warp, int kTiles, class Rows>
PVT_DEVICE void store_rows(void* y, const Rows& rows, int s, Operand<Warp> (&operands)[kTiles]) {
  PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      typename Warp::Vector v;
      PVT_UNROLL for (int i = 0; i < 4; ++i) v.word[i] = operands[tile].pair(half, i);
      Warp::store(y, rows.offset(tile, half) + s * 2 * kStrip, v, rows.valid(tile, half));
    }
  }
}

// y <- strips, rounded
template <class scalar_t, class Warp, int kTiles, class Rows>
PVT_DEVICE void store_strip(void* y, const Rows& rows, int s, Strip<Warp> (&strips)[kTiles]) {
  Operand<Warp> operands[kTiles];
  PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
    round<scalar_t>(strips[tile], operands[tile]);
  }
  store_rows(y, rows, s, operands);
}

// strips += operands
template <class scalar_t, class Warp, int kTiles>
PVT_DEVICE void add_operands(Strip<Warp> (&strips)[kTiles], Operand<Warp> (&operands)[kTiles]) {
  PVT_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
    PVT_UNROLL for (int half = 0; half < 2; ++half) {
      PVT_UNROLL for (int i = 0; i < 4; ++i) {
        const auto word = operands[tile].pair(half, i);
        auto& low = strips[tile].at(half, 2 * i);
        auto& high = strips[tile].at(half, 2 * i + 1);
        low = Warp::template low<scalar_t>(word) + low;
        high = Warp::template high<scalar_t>(word) + high;
      }
    }
  }
}

// x <- x + strips
template <class scalar_t, class Warp, int kTiles, class Rows>
PVT_DEVICE void add_strip(void* x, const Rows& rows, int s, Strip<Warp> (&strips)[kTiles]) {
  Operand<Warp> operands[kTiles];
  load_strip(x, rows, s, operands);
  add_operands<scalar_t>(strips, operands);
  store_strip<scalar_t>(x, rows, s, strips);
}

}  // namespace pvt::cuda
