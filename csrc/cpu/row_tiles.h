// How the tokens of a batch are dealt out to threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace pvt {

// Rows [0, rows) of each of `images` in tiles of almost equal height, in such a number that every
// thread has the same.
class RowTiles {
 public:
  static constexpr int64_t kMaxHeight = 108;  // 108 x 512 channels: half of a second-level cache
  static constexpr int64_t kMinHeight = 40;   // of fewer, reading weights takes longer than using

  explicit RowTiles(int64_t rows, int64_t images = 1, int64_t max_height = kMaxHeight)
      : threads(torch::stable::get_num_threads()), num_rows_(rows) {
    count = (rows + max_height - 1) / max_height;
    if (images < threads || images % threads != 0) {
      count = std::min((count + threads - 1) / threads * threads, rows);
    }
    height = (rows + count - 1) / count;
    too_few_ = threads > 1 && images * rows < threads * kMinHeight;
  }

  int64_t begin(int64_t tile) const { return tile * num_rows_ / count; }
  int64_t rows(int64_t tile) const { return begin(tile + 1) - begin(tile); }
  // Whether the work is better divided by columns of the weights.
  bool too_few() const { return too_few_; }

  int64_t threads;
  int64_t count;   // of tiles per image
  int64_t height;  // of the highest tile

 private:
  int64_t num_rows_;
  bool too_few_;
};

// How many images share working memory of `floats` each at a time: 4 MB in all, an equal number per
// thread. What a large batch needs thus stays bounded, and in cache.
inline int64_t images_at_once(int64_t images, int64_t floats) {
  constexpr int64_t kFloats = 1 << 20;
  const int64_t threads = torch::stable::get_num_threads();
  return std::min(images, std::max<int64_t>(kFloats / floats / threads, 1) * threads);
}

}  // namespace pvt
