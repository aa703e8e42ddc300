// The pointer-level body of patch_embed's last step, compiled once per CPU level (foreach_level.h).

#include "cpu/gemm.h"
#include "cpu/layer_norm.h"
#include "cpu/linear.h"

// Rows [begin, begin + rows) of out <- LayerNorm(sums + bias) + position
//   sums: [rows, round_up(C, kPanel)], of these rows   position: [N, C] or null   out: [B * N, C]
template <class scalar_t>
inline void finish_patches(const PatchArgs& args, float* sums, int64_t begin, int64_t rows,
                           const float* position, float* out) {
  const int64_t C = args.C_out, N = args.out_H * args.out_W, stride = round_up(C, kPanel);
  complete<scalar_t>(args.conv, 0, C, rows, sums, stride);
  if (position == nullptr) {
    layer_norm_rows(sums, stride, rows, C, args.norm, out + begin * C, C);
    return;
  }
  layer_norm_rows(sums, stride, rows, C, args.norm, sums, stride);
  for (int64_t i = 0; i < rows; ++i) {
    float* row = sums + i * stride;
    for (int64_t c = 0; c < C; ++c) {
      row[c] += position[(begin + i) % N * C + c];
    }
    __builtin_memcpy(out + (begin + i) * C, row, C * sizeof(float));
  }
}
