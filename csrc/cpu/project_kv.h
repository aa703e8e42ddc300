// The projection to keys and values that reduce_kv and pool_kv end with. Included after
// foreach_level.h.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/args.h"
#include "cpu/parallel.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

namespace pvt {

// out <- kv(tokens)   tokens: [rows, row_units(C)]   out: [rows, 2 * C]
// In tiles of rows and columns: no weight is read twice by few rows, no row is left waiting.
template <class scalar_t>
void project_kv(const LinearArgs& kv, const float* tokens, int64_t rows, int64_t C, float* out) {
  const auto linear = PVT_BEST_LEVEL(store_linear_columns<scalar_t>);
  const int64_t depth = PVT_BEST_LEVEL(row_units<scalar_t>)(C);
  const int64_t size = 2 * C,
                width = columns_per_task(size, PVT_BEST_LEVEL(kMostColumns<scalar_t>));
  const int64_t column_tiles = (size + width - 1) / width;
  const int64_t max_height = PVT_BEST_LEVEL(kRowLimits<scalar_t>).max_height;
  const int64_t row_tiles = (rows + max_height - 1) / max_height;
  parallel_tasks(row_tiles * column_tiles, [&](int64_t task) {
    const int64_t tile = task / column_tiles, column = task % column_tiles * width;
    const int64_t begin = tile * rows / row_tiles, end = (tile + 1) * rows / row_tiles;
    linear(kv, tokens + begin * depth, end - begin, C, column, std::min(width, size - column), size,
           out + begin * size, thread_scratch(max_height * width));
  });
}

}  // namespace pvt
