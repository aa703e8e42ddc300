// bfloat16 in a matrix product. Part of a kernel body (see foreach_level.h).
#ifndef PVT_BODY_OPERAND_BF16
#define PVT_BODY_OPERAND_BF16

#include "cpu/operand.h"

template <>
struct Operand<BFloat16> {
  using Sum = Vec;
  static constexpr int kPerUnit = 2;
  static constexpr int kHeader = 0;
  static constexpr bool kElementwise = true;
#if PVT_LEVEL >= PVT_LEVEL_AVX512_BF16
  using Element = BFloat16;
  static constexpr int kSteps = 1;
  static constexpr bool kUnpacks = false;

  static Vec right_part(Vec unit, int /*step*/) { return unit; }
  static void multiply_add(Vec left, Vec right, Vec& sum) {
    sum = (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }
#else
  using Element = float;  // not rounded: nothing would be gained
  static constexpr int kSteps = 2;
  // Shifts take the place of multiply-adds where 512 bits are calculated by the same two ports.
  static constexpr bool kUnpacks = PVT_LEVEL >= PVT_LEVEL_AVX512;

  // The first or second of the pair as a float: bfloat16 is the upper half of one.
  static Vec right_part(Vec unit, int step) {
    return step == 0 ? (Vec)((IntVec)unit << 16) : (Vec)((IntVec)unit & -65536);
  }
  static void multiply_add(Vec left, Vec right, Vec& sum) { accumulate(left, right, sum); }
#endif
  static Vec first_sum(const float* /*header*/) { return Vec{}; }
  static Vec total(Vec sum, const float* /*header*/) { return sum; }

  // An odd count is completed by a zero.
  static void to_left(const float* src, int64_t count, float* units) {
    Element* elements = reinterpret_cast<Element*>(units);
    from_float(src, count, elements);
    if (count % 2 != 0) {
      elements[count] = Element{0.f};
    }
  }
  static void to_left(const BFloat16* src, int64_t count, float* units) {
    if constexpr (kSteps == 1) {
      to_right(src, count, units);
    } else {
      to_float(src, count, units);
      if (count % 2 != 0) {
        units[count] = 0.f;
      }
    }
  }
  static void to_right(const BFloat16* src, int64_t count, float* units) {
    if (count % 2 != 0) {
      units[count / 2] = 0.f;
    }
    __builtin_memcpy(units, src, count * sizeof(BFloat16));
  }
  static void to_right(const float* src, int64_t count, float* units) {
    if (count % 2 != 0) {
      units[count / 2] = 0.f;
    }
    from_float(src, count, reinterpret_cast<BFloat16*>(units));
  }
  static void rows_to_right(const BFloat16* rows, int64_t stride, int64_t count, int64_t columns,
                            float* units) {
    for (int64_t t = 0; t < columns; ++t) {
      const BFloat16 pair[2] = {rows[t], count > 1 ? rows[stride + t] : BFloat16(0.f)};
      __builtin_memcpy(units + t, pair, sizeof pair);
    }
  }
  static void rows_to_right(const float* rows, int64_t stride, int64_t count, int64_t columns,
                            float* units) {
    for (int64_t t = 0; t < columns; t += kLanes) {
      const int64_t lanes = columns - t < kLanes ? columns - t : kLanes;
      const Vec first = load_floats(rows + t, lanes);
      const Vec second = count > 1 ? load_floats(rows + stride + t, lanes) : Vec{};
      const IntVec pair =
          (((IntVec)round_to_bfloat16(first) >> 16) & 0xffff) | (IntVec)round_to_bfloat16(second);
      store_floats((Vec)pair, lanes, units + t);
    }
  }
};

#endif  // PVT_BODY_OPERAND_BF16
