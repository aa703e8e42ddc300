// The pointer-level body of reduce_kv, compiled once per CPU level (foreach_level.h).

#include "cpu/gemm.h"
#include "cpu/layer_norm.h"
#include "cpu/linear.h"

// units <- LayerNorm(sums + bias)   sums: [rows, round_up(C, kPanel)]   units: [rows, row_units(C)]
template <class scalar_t>
inline void finish_reduction(const PatchArgs& args, float* sums, int64_t rows, float* units) {
  const int64_t C = args.C_out, stride = round_up(C, kPanel);
  complete<scalar_t>(args.conv, 0, C, rows, sums, stride);
  layer_norm_to_units<scalar_t>(sums, stride, rows, C, args.norm, units);
}
