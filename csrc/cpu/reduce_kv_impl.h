// The pointer-level body of reduce_kv, compiled once per CPU level (foreach_level.h).

#include "cpu/gemm.h"
#include "cpu/layer_norm.h"
#include "cpu/linear.h"

// units <- LayerNorm(sums + bias)   sums: [rows, round_up(C, kPanel)]   units: [rows, num_units(C)]
template <class scalar_t>
inline void finish_reduction(const PatchArgs& args, float* sums, int64_t rows, float* units) {
  const int64_t C = args.C_out, stride = round_up(C, kPanel);
  add_bias(sums, stride, args.conv.bias, rows, C);
  layer_norm_to_units<scalar_t>(sums, stride, rows, C, args.norm, units);
}

// out[:, begin:begin + columns] <- those columns of a layer that has `size`
//   tokens: [rows, depth] units   out: [rows, size]   begin: a multiple of kTileColumns
//   sums: scratch, [rows, kTileColumns]   columns: at most kTileColumns
template <class scalar_t>
inline void store_linear_columns(const LinearArgs& linear, const float* tokens, int64_t rows,
                                 int64_t depth, int64_t begin, int64_t columns, int64_t size,
                                 scalar_t* out, float* sums) {
  linear_columns<scalar_t>(linear, tokens, rows, depth, begin, columns, sums, kTileColumns);
  for (int64_t i = 0; i < rows; ++i) {
    from_float(sums + i * kTileColumns, columns, out + i * size + begin);
  }
}
