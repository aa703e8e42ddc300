// float32 beside packed weights in a matrix product. Part of a kernel body (see foreach_level.h).
//
// The tile unit multiplies bfloat16. A float is the sum of three, a = a0 + a1 + a2, for its
// mantissa has 24 bits and theirs have 8. Of the nine products of a b, six are taken,
//
//   a0 b0 + (a0 b1 + a1 b0) + (a0 b2 + a1 b1 + a2 b0).
//
// |a1| <= 2^-8 |a| and |a2| <= 2^-15 |a|, so what is left out is less than 2^-22 of a b, as a rule
// far less. The products that are taken are exact in float, and a sum of them is closer to the
// exact one than a sum of multiply-adds. Six products of the tile unit take half as long.
//
// Parts below 2^-126 count as zero, as all that the unit multiplies; infinities become NaN, and so
// do the floats beyond the largest bfloat16, from 3.396e38 on.
#ifndef PVT_BODY_OPERAND_SPLIT
#define PVT_BODY_OPERAND_SPLIT

#include "cpu/operand.h"

// Units of a step, a group of inputs of 32 columns: [kParts][2][16][16], two panels side by side.
constexpr int64_t kStepUnits = kParts * 2 * 16 * 16;

#if PVT_LEVEL == PVT_LEVEL_AMX

// The parts of 16 floats, largest first, each in the upper halves of the lanes; the lower half of
// the third is of no meaning. Of infinities and NaN a part is NaN, whatever their bits.
struct Parts {
  UintVec first, second, third;
};

constexpr uint32_t kUpperHalf = 0xffff0000u;

inline Parts split(Vec x) {
  const UintVec first = ((UintVec)x + 0x8000u) & kUpperHalf;  // rounded to nearest
  const Vec rest = x - (Vec)first;
  const UintVec second = (UintVec)rest & kUpperHalf;
  return {first, second, (UintVec)(rest - (Vec)second)};
}

// The units of 16 pairs of inputs, part by part, parts part_size apart.
inline void split_unit(Vec low, Vec high, float* units, int64_t part_size) {
  const Parts a = split(low), b = split(high);
  store(units, (Vec)(a.first >> 16 | b.first));
  store(units + part_size, (Vec)(a.second >> 16 | b.second));
  store(units + 2 * part_size, (Vec)(a.third >> 16 | (b.third & kUpperHalf)));
}

// Unit i of a group is its inputs i and i + 16, on both sides: no lane changes its place. A
// left-hand row has one group after the other, [kParts][16] units each. The right-hand side is
// packed floats, which a product takes apart for all its rows (split_squares.h), or is prepared.
template <>
struct Operand<PackedFloat> {
  using Element = float;
  static constexpr int kPerUnit = 1;
  static constexpr bool kUnpacks = false;
  static constexpr int kHeader = 0;
  static constexpr bool kElementwise = false;

  // A group of a left-hand row.
  static void group_to_left(Vec low, Vec high, float* units) {
    split_unit(low, high, units, kLanes);
  }
  // A whole row.
  static void to_left(const float* src, int64_t count, float* units) {
    for (int64_t k = 0; k < count; k += kSplitGroup, units += kParts * kLanes) {
      const int64_t rest = count - k - kLanes;
      group_to_left(load_floats(src + k, count - k),
                    rest > 0 ? load_floats(src + k + kLanes, rest) : Vec{}, units);
    }
  }
  // A panel of the right-hand side in steps; what fills up the last step is zero.
  //   src: [inputs, columns], rows src_stride apart   out: the panel in its first step
  static void panel_to_right(const float* src, int64_t src_stride, int64_t inputs, int64_t columns,
                             float* out) {
    const auto row = [&](int64_t k) {
      return k < inputs ? load_floats(src + k * src_stride, columns) : Vec{};
    };
    for (int64_t first = 0; first < inputs; first += kSplitGroup, out += kStepUnits) {
      for (int64_t k = first; k < first + kLanes; ++k) {
        split_unit(row(k), row(k + kLanes), out + (k - first) * kLanes, 2 * kLanes * kLanes);
      }
    }
  }
};

#else

template <>
struct Operand<PackedFloat> : Operand<float> {};

#endif

#endif  // PVT_BODY_OPERAND_SPLIT
