// sra_attention_backward on the CPU. Parallel over (batch, head, part of the queries). Every part
// has sums of its own for the keys and values, which are then added in order: which part has which
// queries depends on the shape alone, so the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/arithmetic.h"
#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/sra_attention_backward_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
namespace {

// The queries of a head in parts of at least 384, at most 16 of them.
struct Parts {
  explicit Parts(int64_t N) {
    constexpr int64_t kLeast = 384, kMost = 16, kTile = 48;
    size = std::max(kLeast, (N + kMost - 1) / kMost);
    size = (size + kTile - 1) / kTile * kTile;
    count = (N + size - 1) / size;
  }
  int64_t size, count;
};

template <class scalar_t>
void run(const SraShape& s, const Tensor& grad, const Tensor& q, const Tensor& kv, double scale,
         Tensor* d_q, Tensor* d_kv) {
  const scalar_t* q_data = static_cast<const scalar_t*>(q.const_data_ptr());
  const scalar_t* kv_data = static_cast<const scalar_t*>(kv.const_data_ptr());
  const scalar_t* grad_data = static_cast<const scalar_t*>(grad.const_data_ptr());
  const auto data = [](Tensor* t) {
    return t != nullptr ? static_cast<scalar_t*>(t->mutable_data_ptr()) : nullptr;
  };
  scalar_t* d_q_data = data(d_q);
  scalar_t* d_kv_data = data(d_kv);

  const auto pack = PVT_BEST_LEVEL(pack_grad_head<scalar_t>);
  const auto attend = PVT_BEST_LEVEL(attend_backward<scalar_t>);
  const int64_t packed_size = PVT_BEST_LEVEL(grad_packed_size)(s.kv_len, s.head_dim);
  const int64_t scratch_size = PVT_BEST_LEVEL(attend_backward_scratch_size)(s.kv_len, s.head_dim);
  const Parts parts(s.N);
  // [B, num_heads, parts, 2, kv_len, row_size]
  const int64_t row_size = PVT_BEST_LEVEL(round_up)(s.head_dim, kPackedColumns);
  const int64_t part_size = 2 * s.kv_len * row_size;
  const int64_t num_tasks = s.B * s.num_heads * parts.count;
  Tensor sums =
      torch::stable::empty({d_kv != nullptr ? num_tasks * part_size : 0}, ScalarType::Float);
  float* sums_data = static_cast<float*>(sums.mutable_data_ptr());

  parallel_for(num_tasks, 1, [&](int64_t begin, int64_t end) {
    float* packed = thread_scratch(packed_size + scratch_size);
    float* scratch = packed + packed_size;
    int64_t packed_head = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / parts.count;  // b * num_heads + h
      const int64_t row = task % parts.count * parts.size;
      const int64_t b = head / s.num_heads, column = head % s.num_heads * s.head_dim;
      if (head != packed_head) {
        const scalar_t* k = kv_data + b * kv.stride(0) + column;
        pack(k, k + s.C, s.kv_len, s.head_dim, kv.stride(1), packed, scratch);
        packed_head = head;
      }
      attend(packed, q_data + b * q.stride(0) + row * q.stride(1) + column, q.stride(1),
             grad_data + b * grad.stride(0) + row * grad.stride(1) + column, grad.stride(1),
             std::min(parts.size, s.N - row), s.kv_len, s.head_dim, static_cast<float>(scale),
             d_q_data != nullptr ? d_q_data + (b * s.N + row) * s.C + column : nullptr, s.C,
             d_kv_data != nullptr ? sums_data + task * part_size : nullptr, scratch);
    }
  });
  if (d_kv == nullptr) {
    return;
  }
  const auto add = PVT_BEST_LEVEL(add_parts<scalar_t>);
  parallel_for(s.B * s.num_heads * s.kv_len, 16, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(row_size);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / s.kv_len, key = i % s.kv_len;
      const int64_t b = head / s.num_heads, column = head % s.num_heads * s.head_dim;
      const float* part = sums_data + head * parts.count * part_size + key * row_size;
      scalar_t* out = d_kv_data + (b * s.kv_len + key) * 2 * s.C + column;
      add(part, parts.count, part_size, s.head_dim, out, scratch);
      add(part + s.kv_len * row_size, parts.count, part_size, s.head_dim, out + s.C, scratch);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> sra_attention_backward_cpu(const Tensor& grad, const Tensor& q,
                                                      const Tensor& kv, int64_t num_heads,
                                                      double scale, bool need_q, bool need_kv) {
  const SraShape s = check_sra_attention_backward(grad, q, kv, num_heads);
  if (q.scalar_type() == ScalarType::Double || s.B == 0 || s.N == 0) {
    return sra_attention_backward_aten(grad, q, kv, num_heads, scale, need_q, need_kv);
  }
  Tensor d_q = no_grad_like(q), d_kv = no_grad_like(kv);
  if (need_q) {
    d_q = torch::stable::empty({s.B, s.N, s.C}, q.scalar_type());
  }
  if (need_kv) {
    d_kv = torch::stable::empty({s.B, s.kv_len, 2 * s.C}, q.scalar_type());
  }
  const Tensor rows = with_dense_rows(grad), q_rows = with_dense_rows(q);
  const Tensor kv_rows = with_dense_rows(kv);
  dispatch_dtype("sra_attention_backward", q.scalar_type(), [&](auto type) {
    run<decltype(type)>(s, rows, q_rows, kv_rows, scale, need_q ? &d_q : nullptr,
                        need_kv ? &d_kv : nullptr);
  });
  return {d_q, d_kv};
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("sra_attention_backward", TORCH_BOX(&pvt::sra_attention_backward_cpu));
}
