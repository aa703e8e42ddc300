// The tile instructions of AMX in plain loops, so that its level can be tested on a processor
// without it. Included by the compiler before everything else, after emulated_avx512.h if that is
// (PVT_EMULATE_AMX in CMakeLists.txt). As the processor does, they end the program where a tile is
// not configured or does not fit the others of a product.
#pragma once

#include <immintrin.h>

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

inline void require_product(const Tile& sum, const Tile& a, const Tile& b) {
  require(sum.rows == a.rows && a.row_bytes == 4 * b.rows && sum.row_bytes == b.row_bytes,
          "sizes of a product");
}

// A row of a tile in parts of four bytes.
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

// The upper (part: 1) or lower half of each word, denormal numbers as zeros.
inline Floats widen(Words words, int part) {
  const Words bits = part == 1 ? words & 0xffff0000u : words << 16;
  return (Floats)((bits & 0x7f800000u) == 0 ? Words{} : bits);
}

// Of pairs, the first and the second add up separately. Products of eight bits are exact.
inline void dpbf16ps(int sum, int a, int b) {
  Tile &s = configured(sum), &x = configured(a), &y = configured(b);
  require_product(s, x, y);
  Floats right[16][2];
  for (int k = 0; k < y.rows; ++k) {
    Words words;
    std::memcpy(&words, y.bytes[k], sizeof words);
    right[k][0] = widen(words, 0), right[k][1] = widen(words, 1);
  }
  for (int m = 0; m < s.rows; ++m) {
    Words words;
    std::memcpy(&words, x.bytes[m], sizeof words);
    const Floats left[2] = {widen(words, 0), widen(words, 1)};
    Floats parts[2] = {}, total;
    for (int k = 0; k < y.rows; ++k) {
      parts[0] += left[0][k] * right[k][0];
      parts[1] += left[1][k] * right[k][1];
    }
    std::memcpy(&total, s.bytes[m], sizeof total);
    total += parts[0] + parts[1];
    std::memcpy(s.bytes[m], &total, sizeof total);
  }
}

// Signed bytes of a times unsigned bytes of b, modulo 2^32.
inline void dpbsud(int sum, int a, int b) {
  Tile &s = configured(sum), &x = configured(a), &y = configured(b);
  require_product(s, x, y);
  for (int m = 0; m < s.rows; ++m) {
    for (int n = 0; n < s.row_bytes / 4; ++n) {
      uint32_t total;
      std::memcpy(&total, s.bytes[m] + 4 * n, 4);
      for (int k = 0; k < 4 * y.rows; ++k) {
        const int left = static_cast<int8_t>(x.bytes[m][k]);
        total += static_cast<uint32_t>(left * y.bytes[k / 4][4 * n + k % 4]);
      }
      std::memcpy(s.bytes[m] + 4 * n, &total, 4);
    }
  }
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
