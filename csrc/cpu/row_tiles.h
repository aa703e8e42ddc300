// How the tokens of a batch, or the columns of a weight, are dealt out to threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "cpu/args.h"

namespace pvt {

// Rows [0, rows) of each of `images` in tiles of almost equal height, in such a number that every
// thread has the same.
class RowTiles {
 public:
  static constexpr int64_t kMinHeight = 40;  // of fewer, reading weights takes longer than using

  RowTiles(int64_t rows, int64_t images, const RowLimits& limits)
      : threads(torch::stable::get_num_threads()), num_rows_(rows) {
    count = (rows + limits.max_height - 1) / limits.max_height;
    if (images < threads || images % threads != 0) {
      count = std::min((count + threads - 1) / threads * threads, rows);
    }
    if (rows >= 4 * count * limits.multiple) {  // else tiles would be of too different height
      multiple_ = limits.multiple;
    }
    height = (rows + count - 1) / count + multiple_ - 1;
    too_few_ = threads > 1 && images * rows < threads * kMinHeight;
  }

  int64_t begin(int64_t tile) const {
    return tile == count ? num_rows_ : tile * num_rows_ / count / multiple_ * multiple_;
  }
  int64_t rows(int64_t tile) const { return begin(tile + 1) - begin(tile); }
  // Whether the work is better divided by columns of the weights.
  bool too_few() const { return too_few_; }

  int64_t threads;
  int64_t count;   // of tiles per image
  int64_t height;  // of the highest tile, or more

 private:
  int64_t num_rows_, multiple_ = 1;
  bool too_few_;
};

// How many of `size` columns of a weight a thread takes at once: at most `most`, and, where that
// can be, so many that every thread has the same.
inline int64_t columns_per_task(int64_t size, int64_t most) {
  constexpr int64_t kMultiple = 32;  // two panels, which the tile unit multiplies together
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rounds = (size + threads * most - 1) / (threads * most), tasks = rounds * threads;
  const int64_t columns = (size + tasks - 1) / tasks;
  return (columns + kMultiple - 1) / kMultiple * kMultiple;
}

// How many images share working memory of `floats` each at a time: 4 MB in all, an equal number per
// thread. What a large batch needs thus stays bounded, and in cache.
inline int64_t images_at_once(int64_t images, int64_t floats) {
  constexpr int64_t kFloats = 1 << 20;
  const int64_t threads = torch::stable::get_num_threads();
  return std::min(images, std::max<int64_t>(kFloats / floats / threads, 1) * threads);
}

}  // namespace pvt
