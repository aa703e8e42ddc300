// A register-tiled matrix product on packed panels: the inner loop of every CPU kernel. Part of a
// kernel body (see foreach_level.h).
//
// Both operands are stored in 32-bit units along the sum: one float, a pair of bfloat16 or four
// 8-bit integers. A row of the left-hand matrix is a row of units. A panel is kPanel columns of the
// right-hand matrix, row of units after row of units, [K][kPanel]; columns beyond the matrix are
// zero. The layout is the same at every CPU level: packed weights (pvt_ext/packing.py) have it in
// the model file.
#ifndef PVT_BODY_GEMM
#define PVT_BODY_GEMM

#include "cpu/convert.h"
#include "cpu/vec.h"

constexpr int kPanel = 16;
constexpr int kTileColumns = kTileVecs * kLanes;
constexpr int kTileRows = 6;
constexpr int64_t kSumBlock = 256;  // products summed before they join the running sum

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// How inputs of type scalar_t are multiplied. float16 is widened to float.
//   Element: what to_units() is spared for if a row is written as that: units are made of it, or,
//   for integers, float, of which units are made afterwards
//   kHeader: units before every kSumBlock inputs of a left-hand row
//   kSteps: multiply-adds per unit; step s multiplies left_part(a, s) by right_part(b, s)
//   Sum: a vector of sums
//   first_sum(header), total(sum, header): where the sum over a block starts, and what it is in the
//   end
template <class scalar_t>
struct Operand {
  using Element = float;
  using Sum = Vec;
  static constexpr int kPerUnit = 1;
  static constexpr int kHeader = 0;
  static constexpr int kSteps = 1;

  static Vec left_part(Vec unit, int /*step*/) { return unit; }
  static Vec right_part(Vec unit, int /*step*/) { return unit; }
  static Vec multiply_add(Vec left, Vec right, Vec sum) { return fmadd(left, right, sum); }
  static Vec first_sum(const float* /*header*/) { return Vec{}; }
  static Vec total(Vec sum, const float* /*header*/) { return sum; }

  // `src` and `units` may be the same.
  template <class In>
  static void to_units(const In* src, int64_t count, float* units) {
    if (static_cast<const void*>(src) != units) {
      to_float(src, count, units);
    }
  }
  // units[t] <- the unit of rows[0][t], rows[1][t], ... of `count` rows, those that there are
  template <class In>
  static void rows_to_units(const In* rows, int64_t /*stride*/, int64_t /*count*/, int64_t columns,
                            float* units) {
    to_float(rows, columns, units);
  }
};

template <>
struct Operand<BFloat16> {
  using Element = BFloat16;
  using Sum = Vec;
  static constexpr int kPerUnit = 2;
  static constexpr int kHeader = 0;
#if PVT_LEVEL == PVT_LEVEL_AVX512_BF16
  static constexpr int kSteps = 1;

  static Vec left_part(Vec unit, int /*step*/) { return unit; }
  static Vec multiply_add(Vec left, Vec right, Vec sum) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }
#else
  static constexpr int kSteps = 2;

  // The first or second of the pair as a float: bfloat16 is the upper half of one.
  static Vec left_part(Vec unit, int step) {
    return step == 0 ? (Vec)((IntVec)unit << 16) : (Vec)((IntVec)unit & -65536);
  }
  static Vec multiply_add(Vec left, Vec right, Vec sum) { return fmadd(left, right, sum); }
#endif
  static Vec right_part(Vec unit, int step) { return left_part(unit, step); }
  static Vec first_sum(const float* /*header*/) { return Vec{}; }
  static Vec total(Vec sum, const float* /*header*/) { return sum; }

  // An odd count is completed by a zero.
  static void to_units(const BFloat16* src, int64_t count, float* units) {
    if (count % 2 != 0) {
      units[count / 2] = 0.f;
    }
    __builtin_memcpy(units, src, count * sizeof(BFloat16));
  }
  static void to_units(const float* src, int64_t count, float* units) {
    if (count % 2 != 0) {
      units[count / 2] = 0.f;
    }
    from_float(src, count, reinterpret_cast<BFloat16*>(units));
  }
  static void rows_to_units(const BFloat16* rows, int64_t stride, int64_t count, int64_t columns,
                            float* units) {
    for (int64_t t = 0; t < columns; ++t) {
      const BFloat16 pair[2] = {rows[t], count > 1 ? rows[stride + t] : BFloat16(0.f)};
      __builtin_memcpy(units + t, pair, sizeof pair);
    }
  }
  static void rows_to_units(const float* rows, int64_t stride, int64_t count, int64_t columns,
                            float* units) {
    for (int64_t t = 0; t < columns; t += kLanes) {
      const int64_t lanes = columns - t < kLanes ? columns - t : kLanes;
      const Vec first = load_floats(rows + t, lanes);
      const Vec second = count > 1 ? load_floats(rows + stride + t, lanes) : Vec{};
      const IntVec pair = ((upper_half(first) >> 16) & 0xffff) | upper_half(second);
      store_floats((Vec)pair, lanes, units + t);
    }
  }

 private:
  // The lanes rounded to bfloat16, as floats: to nearest, ties to even, a NaN stays one.
  static IntVec upper_half(Vec v) {
    const IntVec bits = (IntVec)v;
    const IntVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & -65536;
    return v == v ? rounded : IntVec{} + 0x7fc00000;
  }
};

// 8-bit integers. The right-hand side is w + 128 in [1, 255], and its panels end with the columns'
// scales, [kPanel] floats, by which a sum has yet to be multiplied. The left-hand side is quantised
// as it is written: every kSumBlock inputs of a row have their own scale, by which they reach from
// -127 to 127. It is the first unit of their header. The second is what 128 in each weight adds to
// the sum, negated: -128 times the sum of the block's integers.
template <>
struct Operand<int8_t> {
  using Element = float;
  using Sum = IntVec;
  static constexpr int kPerUnit = 4;
  static constexpr int kHeader = 2;
#if PVT_LEVEL == PVT_LEVEL_AVX512_BF16
  static constexpr int kSteps = 1;

  static Vec left_part(Vec unit, int /*step*/) { return unit; }
  static Vec right_part(Vec unit, int /*step*/) { return unit; }
  static IntVec multiply_add(Vec left, Vec right, IntVec sum) {
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)right, (__m512i)left);
  }
#elif PVT_LEVEL >= PVT_LEVEL_AVX2
  // Two of the four in each step, as 16-bit integers. (The instruction for bytes would saturate.)
  static constexpr int kSteps = 2;

  static Vec left_part(Vec unit, int step) {
    const ShortVec shorts = (ShortVec)unit;
    return (Vec)(step == 0 ? (shorts << 8) >> 8 : shorts >> 8);
  }
  static Vec right_part(Vec unit, int step) {
    return (Vec)((step == 0 ? (IntVec)unit : (IntVec)unit >> 8) & 0x00ff00ff);
  }
  static IntVec multiply_add(Vec left, Vec right, IntVec sum) {
#if PVT_LEVEL >= PVT_LEVEL_AVX512
    return sum + (IntVec)_mm512_madd_epi16((__m512i)left, (__m512i)right);
#else
    return sum + (IntVec)_mm256_madd_epi16((__m256i)left, (__m256i)right);
#endif
  }
#else
  static constexpr int kSteps = 4;

  static Vec left_part(Vec unit, int step) {
    return (Vec)((IntVec)((UintVec)unit << (24 - 8 * step)) >> 24);
  }
  static Vec right_part(Vec unit, int step) { return (Vec)(((IntVec)unit >> 8 * step) & 255); }
  static IntVec multiply_add(Vec left, Vec right, IntVec sum) {
    return sum + (IntVec)left * (IntVec)right;
  }
#endif
  static IntVec first_sum(const float* header) { return (IntVec)broadcast(header[1]); }
  static Vec total(IntVec sum, const float* header) {
    return __builtin_convertvector(sum, Vec) * header[0];
  }

  // A whole row: blocks of kSumBlock inputs with their headers.
  static void to_units(const float* src, int64_t count, float* units) {
    for (int64_t k = 0; k < count; k += kSumBlock, units += kHeader + kSumBlock / kPerUnit) {
      const int64_t size = count - k < kSumBlock ? count - k : kSumBlock;
      IntVec largest{};
      for (int64_t i = 0; i < size; i += kLanes) {
        largest = larger(largest, load_floats(src + k + i, size - i));
      }
      block_to_units(src + k, size, largest, units);
    }
  }

  // The larger magnitudes, as the integers that their bits are: a NaN is the largest.
  static IntVec larger(IntVec largest, Vec v) {
    const IntVec magnitude = (IntVec)v & 0x7fffffff;
    return magnitude > largest ? magnitude : largest;
  }

  // A block of at most kSumBlock inputs, whose largest magnitude is among the lanes of `largest`.
  static void block_to_units(const float* src, int64_t count, IntVec largest, float* units) {
    const float limit = reduce_max_bits(largest);
    const Vec inverse = broadcast(limit > 1e-30f ? 127.f / limit : 0.f);
    int8_t* bytes = reinterpret_cast<int8_t*>(units + kHeader);
    UintVec sums{};  // modulo 2^32
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      const IntVec rounded = round(load(src + k), inverse);
      store_bytes(rounded, bytes + k);
      sums += (UintVec)rounded;
    }
    if (k < count) {
      const IntVec rounded = round(load_floats(src + k, count - k), inverse);
      int8_t rest[kLanes];
      store_bytes(rounded, rest);
      __builtin_memcpy(bytes + k, rest, round_up(count - k, kPerUnit));
      sums += (UintVec)rounded;
    }
    const uint32_t excess = static_cast<uint32_t>(round_up(count, kLanes)) * kRoundBits;
    const int32_t offset = -128 * static_cast<int32_t>(reduce_add(sums) - excess);
    units[0] = limit / 127.f;
    __builtin_memcpy(units + 1, &offset, sizeof offset);
  }

 private:
  static constexpr float kRound = 12582912.f;  // adding it rounds to an integer, in the lowest byte
  static constexpr uint32_t kRoundBits = 0x4b400000;

  // dst <- the lowest byte of every lane. (GCC 12 takes __builtin_convertvector apart.)
  static void store_bytes(IntVec v, int8_t* dst) {
#if PVT_LEVEL >= PVT_LEVEL_AVX512
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst),
                     _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
#elif PVT_LEVEL == PVT_LEVEL_AVX2
    const __m256i order =
        _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                         -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8((__m256i)v, order);
    _mm_storel_epi64(
        reinterpret_cast<__m128i*>(dst),
        _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
#else
    for (int i = 0; i < kLanes; ++i) {
      dst[i] = static_cast<int8_t>(v[i]);
    }
#endif
  }
  static IntVec round(Vec v, Vec inverse) { return (IntVec)fmadd(v, inverse, broadcast(kRound)); }
};

// Units that hold `count` inputs.
template <class scalar_t>
inline int64_t num_units(int64_t count) {
  return (count + Operand<scalar_t>::kPerUnit - 1) / Operand<scalar_t>::kPerUnit;
}

// Units of a left-hand row of `count` inputs, headers included.
template <class scalar_t>
inline int64_t row_units(int64_t count) {
  return num_units<scalar_t>(count) +
         Operand<scalar_t>::kHeader * ((count + kSumBlock - 1) / kSumBlock);
}

// Units of a packed matrix of K rows and `columns` columns.
template <class scalar_t>
inline int64_t packed_size(int64_t K, int64_t columns) {
  return round_up(columns, kPanel) * num_units<scalar_t>(K);
}

// Where column j is, from column 0 of panels that are panel_stride units apart.
constexpr int64_t panel_offset(uint64_t j, int64_t panel_stride) {
  return static_cast<int64_t>(j / kPanel) * panel_stride + static_cast<int64_t>(j % kPanel);
}

// c = (accumulate ? c : 0) + a b   for any number of rows and of columns
//   a: [rows][K], rows a_stride units apart   b: panels [K][kPanel], panel_stride units apart
//   c: rows c_stride apart, columns rounded up to whole vectors
//   K: units, without headers; a starts at a multiple of kSumBlock inputs
template <class scalar_t>
void gemm(int64_t rows, int64_t columns, int64_t K, const float* a, int64_t a_stride,
          const float* b, int64_t panel_stride, float* c, int64_t c_stride, bool accumulate);

// Transposes four rows of units into a panel: those at position k go to dst(k)[0:4].
//   rows: [4][count], row_stride apart   dst: the place in the panel that position k has
template <class Destination>
inline void transpose_into_panel(const float* rows, int64_t row_stride, int64_t count,
                                 const Destination& dst) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    Quad r[4];
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(&r[i], rows + i * row_stride + k, sizeof r[i]);
    }
    const Quad low01 = shuffle<0, 4, 1, 5>(r[0], r[1]), high01 = shuffle<2, 6, 3, 7>(r[0], r[1]);
    const Quad low23 = shuffle<0, 4, 1, 5>(r[2], r[3]), high23 = shuffle<2, 6, 3, 7>(r[2], r[3]);
    const Quad columns[4] = {shuffle<0, 1, 4, 5>(low01, low23), shuffle<2, 3, 6, 7>(low01, low23),
                             shuffle<0, 1, 4, 5>(high01, high23),
                             shuffle<2, 3, 6, 7>(high01, high23)};
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(dst(k + i), &columns[i], sizeof columns[i]);
    }
  }
  for (; k < count; ++k) {
    for (int i = 0; i < 4; ++i) {
      dst(k)[i] = rows[i * row_stride + k];
    }
  }
}

#endif  // PVT_BODY_GEMM
