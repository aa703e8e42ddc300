// A register-tiled matrix product on packed panels: the inner loop of every CPU kernel. Part of a
// kernel body (see foreach_level.h).
//
// Both operands are stored in 32-bit units along the sum: one float, or a pair of bfloat16. A row
// of the left-hand matrix is a row of units. A panel is kPanel columns of the right-hand matrix,
// row of units after row of units, [K][kPanel]; columns beyond the matrix are zero. The layout is
// the same at every CPU level: packed weights (pvt_ext/packing.py) have it in the model file.
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

// How inputs of type scalar_t are multiplied. Everything but bfloat16 is widened to float.
//   Element: what a unit is made of
//   kSteps: multiply-adds per unit; step s multiplies part(left, s) by part(right, s)
template <class scalar_t>
struct Operand {
  using Element = float;
  static constexpr int kPerUnit = 1;
  static constexpr int kSteps = 1;

  static Vec part(Vec unit, int /*step*/) { return unit; }
  static Vec multiply_add(Vec left, Vec right, Vec sum) { return fmadd(left, right, sum); }

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
  static constexpr int kPerUnit = 2;
#if PVT_LEVEL == PVT_LEVEL_AVX512_BF16
  static constexpr int kSteps = 1;

  static Vec part(Vec unit, int /*step*/) { return unit; }
  static Vec multiply_add(Vec left, Vec right, Vec sum) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }
#else
  static constexpr int kSteps = 2;

  // The first or second of the pair as a float: bfloat16 is the upper half of one.
  static Vec part(Vec unit, int step) {
    return step == 0 ? (Vec)((IntVec)unit << 16) : (Vec)((IntVec)unit & -65536);
  }
  static Vec multiply_add(Vec left, Vec right, Vec sum) { return fmadd(left, right, sum); }
#endif

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

// Units that hold `count` inputs.
template <class scalar_t>
inline int64_t num_units(int64_t count) {
  return (count + Operand<scalar_t>::kPerUnit - 1) / Operand<scalar_t>::kPerUnit;
}

// Units of a packed matrix of K rows and `columns` columns.
template <class scalar_t>
inline int64_t packed_size(int64_t K, int64_t columns) {
  return round_up(columns, kPanel) * num_units<scalar_t>(K);
}

// Where column j is, from column 0 of panels that are panel_stride units apart.
constexpr int64_t panel_offset(int64_t j, int64_t panel_stride) {
  return j / kPanel * panel_stride + j % kPanel;
}

// c = (accumulate ? c : 0) + a b   for any number of rows and of columns
//   a: [rows][K], rows a_stride units apart   b: panels [K][kPanel], panel_stride units apart
//   c: rows c_stride apart, columns rounded up to whole vectors
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
