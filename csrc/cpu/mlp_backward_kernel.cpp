// mlp_backward on the CPU. Chunk by chunk of rows, parallel over tiles of rows and then over
// columns of the weights' gradients. Each value is computed by one thread, in an order that depends
// on the shape alone, so the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/arithmetic.h"
#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/weights.h"

#define PVT_KERNEL_BODY "cpu/mlp_backward_impl.h"
#include "cpu/foreach_level.h"

namespace pvt {
namespace {

// Rows of a chunk, whole blocks of sums: two tensors of all hidden channels take 8 MB.
int64_t chunk_capacity(const MlpShape& s) {
  constexpr int64_t kBlock = 256, kMost = 2048, kFloats = 1 << 20;
  const int64_t all = (s.rows + kBlock - 1) / kBlock * kBlock;
  return std::min(all, std::clamp(kFloats / s.hidden / kBlock * kBlock, kBlock, kMost));
}

// The weights of one call in panels, see MlpGradArgs.
template <class scalar_t>
class PackedWeights {
 public:
  PackedWeights(const MlpShape& s, const Tensor& fc1, const Tensor& fc2) {
    const int64_t C_size = PVT_BEST_LEVEL(round_up)(s.C, kPackedColumns);
    const int64_t hidden_size = PVT_BEST_LEVEL(round_up)(s.hidden, kPackedColumns);
    memory_ = torch::stable::empty({2 * hidden_size * s.C + C_size * s.hidden}, ScalarType::Float);
    fc1_columns = static_cast<float*>(memory_.mutable_data_ptr());
    fc2_rows = fc1_columns + hidden_size * s.C;
    fc1_rows = fc2_rows + hidden_size * s.C;

    const auto pack_columns = PVT_BEST_LEVEL(pack_columns<float, scalar_t>);
    const auto pack_rows = PVT_BEST_LEVEL(pack_rows<float, scalar_t>);
    const scalar_t* fc1_data = static_cast<const scalar_t*>(fc1.const_data_ptr());
    const scalar_t* fc2_data = static_cast<const scalar_t*>(fc2.const_data_ptr());
    parallel_pack(s.hidden, 4 * s.C, [&](int64_t column, int64_t count, float* scratch) {
      pack_columns(fc1_data + column * s.C, count, s.C, s.C, fc1_columns + column * s.C, scratch);
      pack_rows(fc2_data + column, s.C, count, s.hidden, fc2_rows + column * s.C, 0);
    });
    parallel_pack(s.C, 0, [&](int64_t column, int64_t count, float*) {
      pack_rows(fc1_data + column, s.hidden, count, s.C, fc1_rows + column * s.hidden, 0);
    });
  }

  float *fc1_columns, *fc2_rows, *fc1_rows;

 private:
  Tensor memory_;
};

// Sums of the weights' gradients, in float.
struct WeightGrads {
  explicit WeightGrads(const MlpShape& s)
      : stride(PVT_BEST_LEVEL(round_up)(s.hidden, kPackedColumns)),
        fc1(torch::stable::empty({s.C, stride}, ScalarType::Float)),
        fc2(torch::stable::empty({s.C, stride}, ScalarType::Float)),
        fc1_bias(torch::stable::empty({stride}, ScalarType::Float)),
        fc2_bias(torch::stable::empty({s.C}, ScalarType::Float)) {}

  static float* data(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

  int64_t stride;
  Tensor fc1, fc2;  // fc1 transposed: [C, stride]
  Tensor fc1_bias, fc2_bias;
};

template <class scalar_t>
void run(const MlpShape& s, const Tensor& grad, const Tensor& x, const Tensor& fc1,
         const Vector& fc1_bias, const Tensor& fc2, Tensor* d_x, WeightGrads* d_weights) {
  const PackedWeights<scalar_t> weights(s, fc1, fc2);
  const MlpGradArgs args{
      s.C, s.hidden, weights.fc1_columns, weights.fc2_rows, weights.fc1_rows, fc1_bias.data()};
  const int64_t kRows = PVT_BEST_LEVEL(kMlpGradRows);
  constexpr int64_t kColumns = 64;  // of a task
  const auto backward_rows = PVT_BEST_LEVEL(mlp_backward_rows<scalar_t>);
  const auto backward_columns = PVT_BEST_LEVEL(mlp_backward_columns);
  const auto sum_rows = PVT_BEST_LEVEL(sum_rows);
  const int64_t scratch = PVT_BEST_LEVEL(mlp_backward_scratch_size)(s.C);
  const scalar_t* x_data = static_cast<const scalar_t*>(x.const_data_ptr());
  const scalar_t* grad_data = static_cast<const scalar_t*>(grad.const_data_ptr());
  scalar_t* d_x_data = d_x != nullptr ? static_cast<scalar_t*>(d_x->mutable_data_ptr()) : nullptr;

  MlpGradChunk chunk{};
  chunk.capacity = chunk_capacity(s);
  if (d_weights != nullptr) {
    const int64_t panels_size = d_weights->stride * chunk.capacity;
    chunk.x = thread_scratch<Scratch::kShared>(2 * (panels_size + s.C * chunk.capacity));
    chunk.grad = chunk.x + s.C * chunk.capacity;
    chunk.hidden = chunk.grad + s.C * chunk.capacity;
    chunk.d_before = chunk.hidden + panels_size;
  }
  const int64_t step = d_weights != nullptr ? chunk.capacity : s.rows;
  for (int64_t begin = 0; begin < s.rows; begin += step) {
    const int64_t rows = std::min(step, s.rows - begin);
    parallel_tasks((rows + kRows - 1) / kRows, [&](int64_t tile) {
      const int64_t first = tile * kRows, at = (begin + first) * s.C;
      backward_rows(args, x_data + at, grad_data + at, std::min(kRows, rows - first), first,
                    d_weights != nullptr ? &chunk : nullptr,
                    d_x_data != nullptr ? d_x_data + at : nullptr, thread_scratch(scratch));
    });
    if (d_weights == nullptr) {
      continue;
    }
    const int64_t column_tasks = (s.hidden + kColumns - 1) / kColumns;
    parallel_tasks(column_tasks + 1, [&](int64_t task) {
      const bool accumulate = begin > 0;
      if (task == column_tasks) {
        sum_rows(chunk.grad, chunk.capacity, s.C, rows, accumulate,
                 WeightGrads::data(d_weights->fc2_bias));
        return;
      }
      const int64_t column = task * kColumns;
      backward_columns(args, chunk, rows, column, std::min(kColumns, s.hidden - column), accumulate,
                       WeightGrads::data(d_weights->fc1), WeightGrads::data(d_weights->fc2),
                       d_weights->stride, WeightGrads::data(d_weights->fc1_bias));
    });
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mlp_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias,
    const Tensor& fc2_weight, bool need_x, bool need_weights) {
  const MlpShape s = check_mlp_backward(grad, x, fc1_weight, fc1_bias, fc2_weight);
  const ScalarType dtype = x.scalar_type();
  if (dtype == ScalarType::Double || s.rows == 0 || !(need_x || need_weights)) {
    return mlp_backward_aten(grad, x, fc1_weight, fc1_bias, fc2_weight, need_x, need_weights);
  }
  Tensor d_x = no_grad_like(x);
  if (need_x) {
    d_x = torch::stable::empty({x.size(0), x.size(1), s.C}, dtype);
  }
  std::optional<WeightGrads> sums;
  if (need_weights) {
    sums.emplace(s);
  }
  const Tensor grad_rows = torch::stable::contiguous(grad), x_rows = torch::stable::contiguous(x);
  const Tensor fc1 = torch::stable::contiguous(fc1_weight);
  const Tensor fc2 = torch::stable::contiguous(fc2_weight);
  dispatch_dtype("mlp_backward", dtype, [&](auto type) {
    run<decltype(type)>(s, grad_rows, x_rows, fc1, Vector(fc1_bias), fc2, need_x ? &d_x : nullptr,
                        sums ? &*sums : nullptr);
  });
  if (!need_weights) {
    return grad_of_x(d_x);
  }
  const auto hidden_part = [&](Tensor& t) {
    return torch::stable::narrow(t, t.dim() - 1, 0, s.hidden);
  };
  const auto finished = [&](const Tensor& t) {
    return torch::stable::to(torch::stable::contiguous(t), dtype);
  };
  return {d_x, finished(torch::stable::transpose(hidden_part(sums->fc1), 0, 1)),
          finished(hidden_part(sums->fc1_bias)), finished(hidden_part(sums->fc2)),
          finished(sums->fc2_bias)};
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("mlp_backward", TORCH_BOX(&pvt::mlp_backward_cpu));
}
