// How the inputs of a matrix product are stored and multiplied, by their type. Part of a kernel
// body (see foreach_level.h).
//
// The right-hand side is stored in 32-bit units along the sum: one float, a pair of bfloat16 or
// four 8-bit integers, the same at every CPU level. The left-hand side is written as it is
// multiplied. A level whose instruction multiplies a whole unit takes the same units there; another
// goes through a unit of the right-hand side in steps, and the left-hand side has a unit for each:
// the input as a float, or integers of 16 or 32 bits.
#ifndef PVT_BODY_OPERAND
#define PVT_BODY_OPERAND

#include "cpu/convert.h"
#include "cpu/vec.h"

constexpr int64_t kSumBlock = 256;  // products summed before they join the running sum

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// float, and float16, which is widened to it. Specialised for the other types in files of their
// own.
// - kPerUnit: inputs of a right-hand unit
// - kSteps: left-hand units for each of those; step s multiplies left-hand unit s by
//   right_part(unit, s)
// - kUnpacks: whether many rows are better multiplied as floats, with right-hand units that are
//   taken apart for all of them at once
// - kHeader: units before every kSumBlock inputs of a left-hand row
// - kElementwise: whether left-hand units are an array of Element, so that to_left() is spared
// - Element: of what a row is written before it is multiplied: if not elementwise, of float, of
//   which to_left() makes units afterwards
// - Sum: a vector of sums
// - first_sum(header), total(sum, header): where the sum over a block starts, and what it is in the
//   end
template <class scalar_t>
struct Operand {
  using Element = float;
  using Sum = Vec;
  static constexpr int kPerUnit = 1;
  static constexpr int kSteps = 1;
  static constexpr bool kUnpacks = false;
  static constexpr int kHeader = 0;
  static constexpr bool kElementwise = true;

  static Vec right_part(Vec unit, int /*step*/) { return unit; }
  static void multiply_add(Vec left, Vec right, Vec& sum) { sum = fmadd(left, right, sum); }
  static Vec first_sum(const float* /*header*/) { return Vec{}; }
  static Vec total(Vec sum, const float* /*header*/) { return sum; }

  // A left-hand row. `src` and `units` may be the same.
  template <class In>
  static void to_left(const In* src, int64_t count, float* units) {
    if (static_cast<const void*>(src) != units) {
      to_float(src, count, units);
    }
  }
  // Inputs that follow each other along the sum of one right-hand column.
  template <class In>
  static void to_right(const In* src, int64_t count, float* units) {
    to_float(src, count, units);
  }
  // units[t] <- the right-hand unit of rows[0][t], rows[1][t], ... of `count` rows, those that
  // there are
  template <class In>
  static void rows_to_right(const In* rows, int64_t /*stride*/, int64_t /*count*/, int64_t columns,
                            float* units) {
    to_float(rows, columns, units);
  }
};

// Right-hand units that hold `count` inputs.
template <class scalar_t>
constexpr int64_t right_units(int64_t count) {
  return (count + Operand<scalar_t>::kPerUnit - 1) / Operand<scalar_t>::kPerUnit;
}

// Whether inputs are multiplied in parts (operand_split.h): those of a tile of left-hand units
// together.
template <class scalar_t>
constexpr bool kSplits = PVT_LEVEL == PVT_LEVEL_AMX && std::is_same_v<scalar_t, PackedFloat>;
constexpr int kParts = 3;
constexpr int kSplitGroup = 32;

// Left-hand units of `count` inputs, without headers.
template <class scalar_t>
constexpr int64_t left_units(int64_t count) {
  if constexpr (kSplits<scalar_t>) {
    return round_up(count, kSplitGroup) / 2 * kParts;
  } else {
    return right_units<scalar_t>(count) * Operand<scalar_t>::kSteps;
  }
}

// Units of a left-hand row of `count` inputs, headers included.
template <class scalar_t>
inline int64_t row_units(int64_t count) {
  return left_units<scalar_t>(count) +
         Operand<scalar_t>::kHeader * ((count + kSumBlock - 1) / kSumBlock);
}

#endif  // PVT_BODY_OPERAND
