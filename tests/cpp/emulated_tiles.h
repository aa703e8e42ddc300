// The tile instructions of AMX in plain loops, so that its level can be tested on a processor
// without it. Included by the compiler before everything else, after emulated_avx512.h if that is
// (PVT_EMULATE_AMX in CMakeLists.txt). As the processor does, they end the program where a tile is
// not configured or does not fit the others of a product.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// In place of what foreach_level.h would allow.
#if defined(PVT_EMULATED_AVX512)
#define PVT_AMX_FEATURES PVT_AVX512_BF16_FEATURES
#else
#define PVT_AMX_FEATURES "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
#endif
#define PVT_EMULATED_AMX

namespace emulated_tiles {

struct Tile {
  int rows = 0, row_bytes = 0;  // 0: not configured
  uint8_t bytes[16][64] = {};
};
inline thread_local Tile tiles[8];

inline void require(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "tile instruction: %s\n", what);
    std::abort();
  }
}

inline void loadconfig(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  require(bytes[0] == 1, "palette");
  for (int i = 1; i < 16; ++i) {
    require(bytes[i] == 0, "reserved bytes of the configuration");
  }
  for (int i = 0; i < 16; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
    const int rows = bytes[48 + i];
    require(row_bytes <= 64 && rows <= 16 && (rows == 0) == (row_bytes == 0), "size of a tile");
    require(i < 8 || rows == 0, "number of tiles");
    if (i < 8) {
      tiles[i] = Tile{};
      tiles[i].rows = rows, tiles[i].row_bytes = row_bytes;
    }
  }
}

inline void storeconfig(void* config) {
  uint8_t* bytes = static_cast<uint8_t*>(config);
  std::memset(bytes, 0, 64);
  for (int i = 0; i < 8; ++i) {
    const uint16_t row_bytes = static_cast<uint16_t>(tiles[i].row_bytes);
    std::memcpy(bytes + 16 + 2 * i, &row_bytes, sizeof row_bytes);
    bytes[48 + i] = static_cast<uint8_t>(tiles[i].rows);
    bytes[0] |= tiles[i].rows > 0 ? 1 : 0;
  }
}

inline void release() {
  for (Tile& tile : tiles) {
    tile = Tile{};
  }
}

inline Tile& configured(int number) {
  require(tiles[number].rows > 0, "not configured");
  return tiles[number];
}

inline void zero(int number) {
  Tile& tile = configured(number);
  std::memset(tile.bytes, 0, sizeof tile.bytes);
}

inline void loadd(int number, const void* base, int64_t stride) {
  Tile& tile = configured(number);
  std::memset(tile.bytes, 0, sizeof tile.bytes);
  for (int i = 0; i < tile.rows; ++i) {
    std::memcpy(tile.bytes[i], static_cast<const char*>(base) + i * stride, tile.row_bytes);
  }
}

inline void stored(int number, void* base, int64_t stride) {
  const Tile& tile = configured(number);
  for (int i = 0; i < tile.rows; ++i) {
    std::memcpy(static_cast<char*>(base) + i * stride, tile.bytes[i], tile.row_bytes);
  }
}

// sum[m][n] = add(sum[m][n], a's row m, b's column n), both as units of four bytes, `units` of
// them.
template <class Sum, class Add>
void each_sum(int sum, int a, int b, const Add& add) {
  Tile &s = configured(sum), &x = configured(a), &y = configured(b);
  require(s.rows == x.rows && x.row_bytes == 4 * y.rows && s.row_bytes == y.row_bytes,
          "sizes of a product");
  for (int m = 0; m < s.rows; ++m) {
    for (int n = 0; n < s.row_bytes / 4; ++n) {
      uint8_t column[64];
      for (int k = 0; k < y.rows; ++k) {
        std::memcpy(column + 4 * k, y.bytes[k] + 4 * n, 4);
      }
      Sum total;
      std::memcpy(&total, s.bytes[m] + 4 * n, 4);
      total = add(total, x.bytes[m], column, y.rows);
      std::memcpy(s.bytes[m] + 4 * n, &total, 4);
    }
  }
}

// Of pairs, the first and the second add up separately; denormal numbers are zeros.
inline void dpbf16ps(int sum, int a, int b) {
  const auto widen = [](const uint8_t* bytes) {
    uint16_t upper;
    std::memcpy(&upper, bytes, sizeof upper);
    const uint32_t bits = uint32_t{upper} << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return std::fpclassify(x) == FP_SUBNORMAL ? 0.f : x;
  };
  each_sum<float>(sum, a, b, [&](float total, const uint8_t* x, const uint8_t* y, int units) {
    float parts[2] = {};
    for (int k = 0; k < 2 * units; ++k) {
      parts[k % 2] = std::fma(widen(x + 2 * k), widen(y + 2 * k), parts[k % 2]);
    }
    return total + (parts[0] + parts[1]);
  });
}

// Signed bytes of a times unsigned bytes of b, modulo 2^32.
inline void dpbsud(int sum, int a, int b) {
  each_sum<uint32_t>(sum, a, b, [](uint32_t total, const uint8_t* x, const uint8_t* y, int units) {
    for (int k = 0; k < 4 * units; ++k) {
      total += static_cast<uint32_t>(static_cast<int8_t>(x[k]) * y[k]);
    }
    return total;
  });
}

}  // namespace emulated_tiles

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig emulated_tiles::loadconfig
#define _tile_storeconfig emulated_tiles::storeconfig
#define _tile_release emulated_tiles::release
#define _tile_loadd emulated_tiles::loadd
#define _tile_stored emulated_tiles::stored
#define _tile_zero emulated_tiles::zero
#define _tile_dpbf16ps emulated_tiles::dpbf16ps
#define _tile_dpbsud emulated_tiles::dpbsud
