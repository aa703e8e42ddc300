// sra_attention on the CPU. Parallel over (batch, head, block of queries): every output row is
// computed by one thread in one order, so the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/sra_attention_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
namespace {

constexpr int64_t kRowsPerTask = 96;  // queries; 16 register tiles, some 10 us of work

template <class scalar_t>
void run(const SraShape& s, const Tensor& q, const Tensor& kv, double scale, Tensor& out) {
  const scalar_t* q_data = static_cast<const scalar_t*>(q.const_data_ptr());
  const scalar_t* kv_data = static_cast<const scalar_t*>(kv.const_data_ptr());
  scalar_t* out_data = static_cast<scalar_t*>(out.mutable_data_ptr());

  const auto pack = PVT_BEST_LEVEL(pack_head<scalar_t, scalar_t>);
  const auto attend = PVT_BEST_LEVEL(attend_rows<scalar_t>);
  const int64_t packed_size = PVT_BEST_LEVEL(packed_head_size<scalar_t>)(s.kv_len, s.head_dim);
  const int64_t scratch_size = PVT_BEST_LEVEL(attend_scratch_size<scalar_t>)(s.head_dim);

  const int64_t num_blocks = (s.N + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(s.B * s.num_heads * num_blocks, 1, [&](int64_t begin, int64_t end) {
    float* packed = thread_scratch(packed_size + scratch_size);
    float* scratch = packed + packed_size;
    int64_t packed_head = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / num_blocks;  // b * num_heads + h
      const int64_t row = task % num_blocks * kRowsPerTask;
      const int64_t b = head / s.num_heads, column = head % s.num_heads * s.head_dim;
      // Blocks of a head follow each other, so a thread packs each head once; threads that
      // share a head pack it twice, which is cheaper than waiting for each other.
      if (head != packed_head) {
        const scalar_t* k = kv_data + b * kv.stride(0) + column;
        pack(k, k + s.C, s.kv_len, s.head_dim, kv.stride(1), packed, scratch);
        packed_head = head;
      }
      attend(q_data + b * q.stride(0) + row * q.stride(1) + column, q.stride(1), packed,
             std::min(kRowsPerTask, s.N - row), s.kv_len, s.head_dim, static_cast<float>(scale),
             out_data + (b * s.N + row) * s.C + column, s.C, scratch);
    }
  });
}

}  // namespace

Tensor sra_attention_cpu(const Tensor& q, const Tensor& kv, int64_t num_heads, double scale) {
  const SraShape s = check_sra_attention(q, kv, num_heads);
  if (q.scalar_type() == ScalarType::Double) {
    return sra_attention_aten(q, kv, num_heads, scale);
  }
  Tensor out = torch::stable::empty({s.B, s.N, s.C}, q.scalar_type());
  if (s.B > 0 && s.N > 0) {
    const Tensor q_rows = with_dense_rows(q), kv_rows = with_dense_rows(kv);
    dispatch_dtype("sra_attention", q.scalar_type(),
                   [&](auto type) { run<decltype(type)>(s, q_rows, kv_rows, scale, out); });
  }
  return out;
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("sra_attention", TORCH_BOX(&pvt::sra_attention_cpu));
}
