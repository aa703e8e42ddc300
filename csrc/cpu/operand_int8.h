// 8-bit integers in a matrix product. Part of a kernel body (see foreach_level.h).
#ifndef PVT_BODY_OPERAND_INT8
#define PVT_BODY_OPERAND_INT8

#include "cpu/operand.h"

// The right-hand side is w + 128 in [1, 255], and its panels end with the columns' scales, [kPanel]
// floats, by which a sum has yet to be multiplied. The left-hand side is quantised as it is
// written: every kSumBlock inputs of a row have their own scale, by which they reach from -127 to
// 127. It is the first unit of their header. The second is what 128 in each weight adds to the sum,
// negated: -128 times the sum of the block's integers.
template <>
struct Operand<int8_t> {
  using Element = float;
  using Sum = IntVec;
  static constexpr int kPerUnit = 4;
  static constexpr int kHeader = 2;
  static constexpr bool kElementwise = false;

  // Integer: what the left-hand side consists of. A multiply-add takes as many as fill 32 bits.
#if PVT_LEVEL >= PVT_LEVEL_AVX512_VNNI
  using Integer = int8_t;
  static Vec right_part(Vec unit, int /*step*/) { return unit; }
  static void multiply_add(Vec left, Vec right, IntVec& sum) {
    sum = (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)right, (__m512i)left);
  }
#elif PVT_LEVEL == PVT_LEVEL_AVX512
  using Integer = int16_t;  // the instruction for bytes would saturate
  static Vec right_part(Vec unit, int step) {
    const __m512i pair = _mm512_set4_epi32(byte_pair(3, step), byte_pair(2, step),
                                           byte_pair(1, step), byte_pair(0, step));
    return (Vec)_mm512_shuffle_epi8((__m512i)unit, pair);
  }
  static void multiply_add(Vec left, Vec right, IntVec& sum) { accumulate_pairs(left, right, sum); }
#elif PVT_LEVEL == PVT_LEVEL_AVX2
  using Integer = int16_t;
  static Vec right_part(Vec unit, int step) {
    const __m256i pair = _mm256_broadcastsi128_si256(_mm_setr_epi32(
        byte_pair(0, step), byte_pair(1, step), byte_pair(2, step), byte_pair(3, step)));
    return (Vec)_mm256_shuffle_epi8((__m256i)unit, pair);
  }
  static void multiply_add(Vec left, Vec right, IntVec& sum) { accumulate_pairs(left, right, sum); }
#else
  using Integer = int32_t;
  static Vec right_part(Vec unit, int step) { return (Vec)(((IntVec)unit >> 8 * step) & 255); }
  static void multiply_add(Vec left, Vec right, IntVec& sum) {
    sum = (IntVec)((UintVec)sum + (UintVec)left * (UintVec)right);
  }
#endif
  static constexpr int kSteps = sizeof(Integer);
  static constexpr bool kUnpacks = false;

  static IntVec first_sum(const float* header) { return (IntVec)broadcast(header[1]); }
  static Vec total(IntVec sum, const float* header) {
    return __builtin_convertvector(sum, Vec) * header[0];
  }

  // A whole row: blocks of kSumBlock inputs with their headers.
  static void to_left(const float* src, int64_t count, float* units) {
    for (int64_t k = 0; k < count;
         k += kSumBlock, units += kHeader + kSumBlock / kPerUnit * kSteps) {
      const int64_t size = count - k < kSumBlock ? count - k : kSumBlock;
      IntVec largest{};
      for (int64_t i = 0; i < size; i += kLanes) {
        largest = larger(largest, load_floats(src + k + i, size - i));
      }
      block_to_left(src + k, size, largest, units);
    }
  }

  // The larger magnitudes, as the integers that their bits are: a NaN is the largest.
  static IntVec larger(IntVec largest, Vec v) {
    const IntVec magnitude = (IntVec)v & 0x7fffffff;
    return magnitude > largest ? magnitude : largest;
  }

  // A block of at most kSumBlock inputs, whose largest magnitude is among the lanes of `largest`.
  static void block_to_left(const float* src, int64_t count, IntVec largest, float* units) {
    const float limit = reduce_max_bits(largest);
    const Vec inverse = broadcast(limit > 1e-30f ? 127.f / limit : 0.f);
    Integer* integers = reinterpret_cast<Integer*>(units + kHeader);
    UintVec sums{};  // modulo 2^32
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      const IntVec rounded = round(load(src + k), inverse);
      store_integers(rounded, integers + k);
      sums += (UintVec)rounded;
    }
    if (k < count) {
      const IntVec rounded = round(load_floats(src + k, count - k), inverse);
      Integer rest[kLanes];
      store_integers(rounded, rest);
      __builtin_memcpy(integers + k, rest, round_up(count - k, kPerUnit) * sizeof(Integer));
      sums += (UintVec)rounded;
    }
    const uint32_t excess = static_cast<uint32_t>(round_up(count, kLanes)) * kRoundBits;
    // Without a sign, as all sums of integers here: those of a row with a NaN may overflow.
    const uint32_t offset = 0u - 128u * (reduce_add(sums) - excess);
    units[0] = limit / 127.f;
    __builtin_memcpy(units + 1, &offset, sizeof offset);
  }

 private:
  // Which bytes of the 16 around it a lane takes as 16-bit integers: two of its own four.
  static constexpr int32_t byte_pair(int lane, int step) {
    const uint32_t first = static_cast<uint32_t>(4 * lane + 2 * step);
    return static_cast<int32_t>(0x80008000u | (first + 1) << 16 | first);
  }
  static constexpr float kRound = 12582912.f;  // adding it rounds to an integer, in the lowest byte
  static constexpr uint32_t kRoundBits = 0x4b400000;

  // dst <- the integer of every lane that round() gave. (GCC 12 takes __builtin_convertvector
  // apart.)
  static void store_integers(IntVec v, Integer* dst) {
#if PVT_LEVEL >= PVT_LEVEL_AVX512_VNNI
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst),
                     _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
#elif PVT_LEVEL == PVT_LEVEL_AVX512
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst),
                        _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v));
#elif PVT_LEVEL == PVT_LEVEL_AVX2
    const __m256i lower = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i halves = _mm256_shuffle_epi8((__m256i)v, lower);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst),
                     _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0b1000)));
#else
    const IntVec integers = v - static_cast<int32_t>(kRoundBits);
    __builtin_memcpy(dst, &integers, sizeof integers);
#endif
  }
  static IntVec round(Vec v, Vec inverse) { return (IntVec)fmadd(v, inverse, broadcast(kRound)); }
};

#endif  // PVT_BODY_OPERAND_INT8
