// sra_attention on CUDA: which tokens have a kernel. More keys than it takes are flash attention's,
// in ATen.
#include <torch/csrc/stable/library.h>

#include "aten/kernels.h"
#include "cuda/attention.h"
#include "cuda/sra_attention.h"

namespace pvt::cuda {
namespace {

// Runs the kernel if there is one for such heads.
template <class scalar_t>
bool dispatch_heads(const Device& device, const SraShape& s, const SraAttentionArgs& args) {
  switch (s.head_dim) {
    case 32:
      return run_sra_attention<scalar_t, 32>(device, s.B, args), true;
    case 64:
      return run_sra_attention<scalar_t, 64>(device, s.B, args), true;
    default:
      return false;
  }
}

}  // namespace

Tensor sra_attention_cuda(const Tensor& q, const Tensor& kv, int64_t num_heads, double scale) {
  const SraShape s = check_sra_attention(q, kv, num_heads);
  const Device device("sra_attention", q);
  if (s.B > 0 && s.N > 0 && s.N <= INT32_MAX && s.C <= INT32_MAX / 2 &&
      s.kv_len <= kMaxStayingKeys && is_usual_scale(scale) && is_16_bit(q.scalar_type()) &&
      device.can_run_kernels()) {
    const Tensor queries = dense(q), keys = vector_rows(kv);
    Tensor out = torch::stable::new_empty(q, {s.B, s.N, s.C});
    const SraAttentionArgs args{queries.const_data_ptr(),
                                key_values(keys),
                                out.mutable_data_ptr(),
                                s.N,
                                static_cast<int>(s.num_heads),
                                log2_scale(scale),
                                /*parts=*/0};
    bool done = false;
    dispatch_16_bit(q.scalar_type(),
                    [&](auto type) { done = dispatch_heads<decltype(type)>(device, s, args); });
    if (done) {
      return out;
    }
  }
  return sra_attention_aten(q, kv, num_heads, scale);
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("sra_attention", TORCH_BOX(&pvt::cuda::sra_attention_cuda));
}
