// sra_attention_backward as products of ATen, with the probabilities in memory.
#include "aten/arithmetic.h"
#include "aten/kernels.h"

namespace pvt {

std::tuple<Tensor, Tensor> sra_attention_backward_aten(const Tensor& grad, const Tensor& q,
                                                       const Tensor& kv, int64_t num_heads,
                                                       double scale, bool need_q, bool need_kv) {
  const SraShape s = check_sra_attention_backward(grad, q, kv, num_heads);
  // [B, L, C] -> [B, num_heads, L, head_dim] and back
  const auto split_heads = [&](const Tensor& t) {
    const Tensor split = torch::stable::reshape(t, {t.size(0), t.size(1), num_heads, s.head_dim});
    return torch::stable::transpose(split, 1, 2);
  };
  const auto join_heads = [&](const Tensor& t) {
    return torch::stable::reshape(torch::stable::transpose(t, 1, 2), {s.B, t.size(2), s.C});
  };
  const auto transposed = [](const Tensor& t) { return torch::stable::transpose(t, 2, 3); };
  Tensor source = kv;
  const Tensor queries = split_heads(multiply_aten(q, scalar_like(scale, q)));
  const Tensor k = split_heads(torch::stable::narrow(source, 2, 0, s.C));
  const Tensor v = split_heads(torch::stable::narrow(source, 2, s.C, s.C));
  const Tensor d_out = split_heads(grad);
  const Tensor probs =
      call_aten("aten::softmax", "int", torch::stable::matmul(queries, transposed(k)), int64_t{-1},
                std::optional<ScalarType>());
  const Tensor d_scores =
      call_aten("aten::_softmax_backward_data", "", torch::stable::matmul(d_out, transposed(v)),
                probs, int64_t{-1}, q.scalar_type());
  Tensor d_q = no_grad_like(q), d_kv = no_grad_like(kv);
  if (need_q) {
    d_q = multiply_aten(join_heads(torch::stable::matmul(d_scores, k)), scalar_like(scale, q));
  }
  if (need_kv) {
    d_kv = torch::stable::new_empty(kv, {s.B, s.kv_len, 2 * s.C});
    Tensor d_k = torch::stable::narrow(d_kv, 2, 0, s.C);
    Tensor d_v = torch::stable::narrow(d_kv, 2, s.C, s.C);
    torch::stable::copy_(d_k, join_heads(torch::stable::matmul(transposed(d_scores), queries)));
    torch::stable::copy_(d_v, join_heads(torch::stable::matmul(transposed(probs), d_out)));
  }
  return {d_q, d_kv};
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("sra_attention_backward", TORCH_BOX(&pvt::sra_attention_backward_aten));
}
