// Weights as a module holds them, packed for one call.
#pragma once

#include <algorithm>

#include "checks.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace pvt {

// pack(first column, columns, scratch) for the columns of every panel, in parallel, with `scratch`
// floats of working memory each.
template <class Pack>
void parallel_pack(int64_t columns, int64_t scratch, const Pack& pack) {
  const int64_t panels = (columns + kPackedColumns - 1) / kPackedColumns;
  parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    float* memory = thread_scratch(scratch);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t column = panel * kPackedColumns;
      pack(column, std::min(kPackedColumns, columns - column), memory);
    }
  });
}

}  // namespace pvt
