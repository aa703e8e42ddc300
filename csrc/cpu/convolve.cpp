// Parallel over tiles of output tokens or, when those are few, over columns of the weight.
#include "cpu/convolve.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "checks.h"
#include "cpu/parallel.h"
#include "cpu/row_tiles.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/convolve_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {

template <class scalar_t>
void convolve(const PatchArgs& args, int64_t images, const float* x, const FinishRows& finish) {
  const int64_t rows = images * args.out_H * args.out_W;
  const RowTiles tiles(rows, 1, PVT_BEST_LEVEL(kPatchLimits<scalar_t>));
  const int64_t width = std::max<int64_t>(PVT_BEST_LEVEL(kTileColumns), kPackedColumns);
  const int64_t stride = PVT_BEST_LEVEL(round_up)(args.C_out, kPackedColumns);
  const auto convolve = PVT_BEST_LEVEL(convolve_rows<scalar_t>);
  const int64_t columns = (stride + width - 1) / width;
  if (!tiles.too_few() || columns < tiles.threads) {
    const int64_t scratch = PVT_BEST_LEVEL(convolve_scratch_size<scalar_t>)(args, tiles.height);
    parallel_tasks(tiles.count, [&](int64_t tile) {
      const int64_t row = tiles.begin(tile), height = tiles.rows(tile);
      float* sums = thread_scratch(height * stride + scratch);
      convolve(args, x, row, height, 0, stride, sums, stride, sums + height * stride);
      finish(row, height, sums);
    });
    return;
  }
  // Each thread gathers all patches for its columns: little beside so long a product.
  const int64_t scratch = PVT_BEST_LEVEL(convolve_scratch_size<scalar_t>)(args, rows);
  float* sums = thread_scratch<Scratch::kSums>(rows * stride);
  parallel_for(columns, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * width, last = std::min(end * width, stride);
    convolve(args, x, 0, rows, first, last - first, sums + first, stride, thread_scratch(scratch));
  });
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    finish(begin, end - begin, sums + begin * stride);
  });
}

template void convolve<PackedFloat>(const PatchArgs&, int64_t, const float*, const FinishRows&);
template void convolve<BFloat16>(const PatchArgs&, int64_t, const float*, const FinishRows&);
template void convolve<int8_t>(const PatchArgs&, int64_t, const float*, const FinishRows&);

}  // namespace pvt
