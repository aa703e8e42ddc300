// The pointer-level body of mlp, compiled once per CPU level (foreach_level.h): that of mlp_block_
// between its LayerNorm and its residual.

#include "cpu/mlp_block_impl.h"
#include "cpu/pack.h"

// out <- fc2(gelu(fc1(x)))   x, out: [rows, C]   scratch: as mlp_rows() needs
template <class scalar_t>
inline void plain_mlp_rows(const MlpArgs& args, const scalar_t* x, int64_t rows, scalar_t* out,
                           float* scratch) {
  const int64_t C = args.C, sum_stride = round_up(C, kPanel), stride = row_units<scalar_t>(C);
  float* sums = scratch + fc2_scratch_size<scalar_t>(rows);  // [rows, sum_stride]
  float* tokens = sums + rows * sum_stride;                  // [rows, stride]
  for (int64_t i = 0; i < rows; ++i) {
    Operand<scalar_t>::to_left(x + i * C, C, tokens + i * stride);
  }
  fc2_sums<scalar_t>(args, tokens, rows, sums, scratch);
  complete<scalar_t>(args.fc2, 0, C, rows, sums, sum_stride);
  for (int64_t i = 0; i < rows; ++i) {
    from_float(sums + i * sum_stride, C, out + i * C);
  }
}
