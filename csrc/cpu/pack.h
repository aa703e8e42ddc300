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

// One panel of a prepared right-hand side (gemm.h), the sum runs down the rows of src.
//   src: [inputs, columns], rows src_stride apart   out: where the panel begins
//   padded: inputs and the zeros that follow them
template <class scalar_t, class In>
inline void prepare_panel(const In* src, int64_t src_stride, int64_t inputs, int64_t columns,
                          int64_t padded, float* out) {
  using Op = Operand<scalar_t>;
  if constexpr (kSplits<scalar_t>) {
    Op::panel_to_right(src, src_stride, inputs, columns, out);
  } else {
    for (int64_t k = 0; k < padded; k += Op::kPerUnit, out += kPanel) {
      const int64_t width = k < inputs ? columns : 0;
      Op::rows_to_right(src + k * src_stride, src_stride, inputs - k, width, out);
      for (int64_t j = width; j < kPanel; ++j) {
        out[j] = 0.f;
      }
    }
  }
}

// Panels of columns [0, columns) of a prepared right-hand side, the sum runs along the rows of src.
//   src: [columns, inputs], rows src_stride apart   scratch: see prepare_scratch_size
template <class scalar_t, class In>
inline void prepare_columns(const In* src, int64_t columns, int64_t inputs, int64_t src_stride,
                            float* prepared, float* scratch) {
  if constexpr (kSplits<scalar_t>) {
    float* panel = scratch + 4 * inputs;  // [inputs, kPanel]
    for (int64_t j = 0; j < columns; j += kPanel) {
      const int64_t count = columns - j < kPanel ? columns - j : kPanel;
      pack_columns<float>(src + j * src_stride, count, inputs, src_stride, panel, scratch);
      Operand<scalar_t>::panel_to_right(
          panel, kPanel, inputs, kPanel,
          prepared + prepared_offset<scalar_t>(j, 0, prepared_depth<scalar_t>(inputs)));
    }
  } else {
    pack_columns<scalar_t>(src, columns, inputs, src_stride, prepared, scratch);
  }
}

// Floats of working memory that prepare_columns() needs.
template <class scalar_t>
inline int64_t prepare_scratch_size(int64_t inputs) {
  return (kSplits<scalar_t> ? 4 + kPanel : 4) * inputs;
}

#endif  // PVT_BODY_PACK
