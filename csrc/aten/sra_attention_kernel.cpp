// sra_attention as ATen's scaled_dot_product_attention, which picks the device's best backend.
#include "aten/arithmetic.h"
#include "aten/call.h"
#include "aten/kernels.h"
#include "checks.h"

namespace pvt {

Tensor sra_attention_aten(const Tensor& q, const Tensor& kv, int64_t num_heads, double scale) {
  const SraShape s = check_sra_attention(q, kv, num_heads);
  if (s.B == 0 || s.N == 0) {
    return torch::stable::empty_like(q);
  }
  // [B, L, C] -> [B, num_heads, L, head_dim]
  const auto split_heads = [&](const Tensor& t) {
    const Tensor split = torch::stable::reshape(t, {t.size(0), t.size(1), num_heads, s.head_dim});
    return torch::stable::transpose(split, 1, 2);
  };
  // Backends mask keys that do not exist before they scale scores: the sign goes into the queries.
  Tensor queries = q;
  if (scale <= 0) {
    queries = multiply_aten(q, scalar_like(scale < 0 ? -1 : 0, q));
    scale = scale < 0 ? -scale : 1;
  }
  Tensor source = kv;
  const Tensor k = split_heads(torch::stable::narrow(source, 2, 0, s.C));
  const Tensor v = split_heads(torch::stable::narrow(source, 2, s.C, s.C));
  const Tensor out = call_aten("aten::scaled_dot_product_attention", "", split_heads(queries), k, v,
                               std::optional<Tensor>(), /*dropout_p=*/0.0, /*is_causal=*/false,
                               std::optional<double>(scale), /*enable_gqa=*/false);
  return torch::stable::reshape(torch::stable::transpose(out, 1, 2), {s.B, s.N, s.C});
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CompositeExplicitAutograd, m) {
  m.impl("sra_attention", TORCH_BOX(&pvt::sra_attention_aten));
}
