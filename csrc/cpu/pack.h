// Right-hand sides of matrix products, brought into panels (gemm.h). Part of a kernel body
// (foreach_level.h).
#ifndef PVT_BODY_PACK
#define PVT_BODY_PACK

#include "cpu/gemm.h"

// Packs src^T: column j of the right-hand side is row j of src, the sum runs along it.
//   src: [columns, depth], rows src_stride apart   rows: scratch, [4, right_units(depth)]
//   packed: [panels][right_units(depth)][kPanel]; columns that pad the last panel are zero
template <class scalar_t, class In>
inline void pack_columns(const In* src, int64_t columns, int64_t depth, int64_t src_stride,
                         float* packed, float* rows) {
  const int64_t units = right_units<scalar_t>(depth);
  for (int64_t j = 0; j < round_up(columns, kPanel); j += 4) {
    for (int64_t i = 0; i < 4; ++i) {
      if (j + i < columns) {
        Operand<scalar_t>::to_right(src + (j + i) * src_stride, depth, rows + i * units);
      } else {
        __builtin_memset(rows + i * units, 0, units * sizeof(float));
      }
    }
    float* column = packed + j / kPanel * units * kPanel + j % kPanel;
    transpose_into_panel(rows, units, units, [=](int64_t u) { return column + u * kPanel; });
  }
}

// Packs src itself: the sum runs down its rows.
//   src: [depth, columns], rows src_stride apart
//   packed: [panels][right_units(depth)][kPanel], panels panel_stride units apart
template <class scalar_t, class In>
inline void pack_rows(const In* src, int64_t depth, int64_t columns, int64_t src_stride,
                      float* packed, int64_t panel_stride) {
  using Op = Operand<scalar_t>;
  for (int64_t k = 0; k < depth; k += Op::kPerUnit) {
    for (int64_t j = 0; j < columns; j += kPanel) {
      const int64_t width = columns - j < kPanel ? columns - j : kPanel;
      float* units = packed + panel_offset(j, panel_stride) + k / Op::kPerUnit * kPanel;
      Op::rows_to_right(src + k * src_stride + j, src_stride, depth - k, width, units);
      for (int64_t i = width; i < kPanel; ++i) {
        units[i] = 0.f;
      }
    }
  }
}

#endif  // PVT_BODY_PACK
