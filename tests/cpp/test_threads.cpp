// How tokens are dealt out to threads, and what threads leave behind.
#include <torch/torch.h>

#include <ATen/core/dispatch/Dispatcher.h>

#include "cpu/cpu_level.h"
#include "cpu/row_tiles.h"
#include "pvt_ops.h"

#if defined(PVT_HAS_AMX)
#include <immintrin.h>
#endif

// torch and doctest both have a CHECK.
#undef CHECK
#include <doctest/doctest.h>

#include <string>
#include <vector>

TEST_CASE("tiles of rows are all of them, none empty, none too high, and begin at multiples") {
  const int threads_before = torch::get_num_threads();
  for (int threads : {1, 2, 3, 8}) {
    torch::set_num_threads(threads);
    for (const pvt::RowLimits limits : {pvt::RowLimits{208, 32}, pvt::RowLimits{108, 1}}) {
      for (int64_t images : {1, 2, 8}) {
        for (int64_t rows = 1; rows < 5000; rows += 1 + rows / 7) {
          CAPTURE(rows);
          CAPTURE(images);
          const pvt::RowTiles tiles(rows, images, limits);
          REQUIRE(tiles.begin(0) == 0);
          REQUIRE(tiles.begin(tiles.count) == rows);
          for (int64_t tile = 0; tile < tiles.count; ++tile) {
            REQUIRE(tiles.rows(tile) > 0);
            REQUIRE(tiles.rows(tile) <= tiles.height);
            if (rows / tiles.count >= 4 * limits.multiple) {
              REQUIRE(tiles.begin(tile) % limits.multiple == 0);
            }
          }
        }
      }
    }
  }
  torch::set_num_threads(threads_before);
}

TEST_CASE("columns are dealt out in whole panels, to all threads equally often") {
  const int threads_before = torch::get_num_threads();
  for (const int threads : {1, 2, 3, 16}) {
    torch::set_num_threads(threads);
    for (const int64_t most : {32, 64, 256}) {
      for (int64_t size = 1; size < 5000; size += 1 + size / 7) {
        CAPTURE(threads);
        CAPTURE(size);
        const int64_t columns = pvt::columns_per_task(size, most);
        REQUIRE(columns % 32 == 0);
        REQUIRE(columns > 0);
        REQUIRE(columns <= most);
      }
    }
    for (const int64_t size : {320, 512, 640, 1024}) {
      if (size % (32 * threads) == 0) {
        const int64_t columns = pvt::columns_per_task(size, 256);
        REQUIRE((size + columns - 1) / columns % threads == 0);
      }
    }
  }
  torch::set_num_threads(threads_before);
}

#if defined(PVT_HAS_AMX)
namespace {

__attribute__((target("amx-tile"))) bool tiles_in_use() {
  alignas(64) unsigned char config[64] = {};
  _tile_storeconfig(config);
  asm volatile("" : "+m"(config));  // some compilers' headers tell of eight bytes
  return config[0] != 0;
}

}  // namespace

TEST_CASE("an operator gives the processor's tiles back") {
  if (std::string(pvt_cpu_level()) != "amx") {
    MESSAGE("NOT TESTED: this processor has no tiles");
    return;
  }
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("pvt::sra_attention", "");
  std::vector<c10::IValue> arguments{torch::randn({1, 64, 64}).to(torch::kBFloat16),
                                     torch::randn({1, 49, 128}).to(torch::kBFloat16), 1, 0.125};
  op.callBoxed(&arguments);
  CHECK(!tiles_in_use());
}
#endif
