// Pillow's resampler on 8-bit images, value for value: an implementation of the method that
// Pillow's src/libImaging/Resample.c describes. No torch here: pointers and sizes.
#pragma once

#include <cstdint>
#include <vector>

namespace pvt {

enum class Interpolation { kBilinear, kBicubic };

// Of a weight's fraction: 8 bits of pixel and 2 of headroom (bicubic weights overshoot) leave them
// in a 32-bit sum.
constexpr int kResampleBits = 32 - 8 - 2;

// The weights of one axis. Output position i is the weighted sum of the count[i] input positions
// from begin + first[i] on, with weights[i * taps ...] in fixed point of kResampleBits. An axis
// that keeps its size has weights 0, 1, 0, which reproduce every value.
struct ResampleWeights {
  int64_t begin, end;  // the input positions that are read
  int64_t taps;        // weights per output position, the last ones unused
  std::vector<int64_t> first;
  std::vector<int64_t> count;
  std::vector<int32_t> weights;

  int64_t in_size() const { return end - begin; }
  int64_t out_size() const { return static_cast<int64_t>(first.size()); }
};

// What the CUDA library takes from the other one.
#pragma GCC visibility push(default)

// Weights of the output positions [out_begin, out_end) when in_size positions are resized to
// out_size.
ResampleWeights resample_weights(int64_t in_size, int64_t out_size, int64_t out_begin,
                                 int64_t out_end, Interpolation interpolation);

// The two passes round to 8 bits in between, so their order shows in the values. As Pillow
// since 13.0, the vertical pass goes first if it discards more than twice as many rows as the other
// columns.
bool vertical_pass_first(int64_t in_height, int64_t in_width, int64_t height, int64_t width);

#pragma GCC visibility pop

// One row: src [x.in_size(), channels] -> dst [x.out_size(), channels].
void resample_row(const uint8_t* src, int64_t channels, const ResampleWeights& x, uint8_t* dst);

// Output row i of [y.in_size(), row_size] bytes, rows row_stride apart -> dst [row_size].
void resample_column(const uint8_t* src, int64_t row_stride, int64_t row_size,
                     const ResampleWeights& y, int64_t i, uint8_t* dst);

}  // namespace pvt
