// spatial_reduction_backward on the CPU. Parallel over windows, then over (token of a window, input
// channels) of the weight's gradient. Each value is computed by one thread in one order, so the
// result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "aten/arithmetic.h"
#include "aten/kernels.h"
#include "checks.h"
#include "cpu/dtype.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define PVT_KERNEL_BODY "cpu/spatial_reduction_backward_impl.h"
#include "cpu/foreach_level.h"
#include "cpu/spatial_reduction_args.h"

namespace pvt {
namespace {

// [C, C, sr_ratio, sr_ratio] in the panels of the product with it, see ReduceGradArgs.
template <class scalar_t>
Tensor packed_rows(const ReductionShape& s, const Tensor& weight) {
  const auto pack = PVT_BEST_LEVEL(pack_filter_rows<scalar_t>);
  const int64_t size = PVT_BEST_LEVEL(round_up)(s.C, kPackedColumns);
  Tensor packed = torch::stable::empty({s.sr_ratio * s.sr_ratio * s.C * size}, ScalarType::Float);
  const scalar_t* weight_data = static_cast<const scalar_t*>(weight.const_data_ptr());
  float* packed_data = static_cast<float*>(packed.mutable_data_ptr());
  parallel_for(s.C, 4, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(PVT_BEST_LEVEL(filter_scratch_size)(s.C, s.sr_ratio));
    for (int64_t channel = begin; channel < end; ++channel) {
      pack(weight_data, s.C, s.sr_ratio, channel, packed_data, scratch);
    }
  });
  return packed;
}

// The gradients of the weights in float.
struct WeightGrads {
  explicit WeightGrads(const ReductionShape& s, int64_t row_size)
      : weight(torch::stable::empty({s.sr_ratio, s.sr_ratio, s.C, row_size}, ScalarType::Float)),
        vectors(torch::stable::empty({3, row_size}, ScalarType::Float)) {}

  Tensor weight;   // [sr_ratio, sr_ratio, C, row_size]
  Tensor vectors;  // bias, norm_weight, norm_bias
};

template <class scalar_t>
void run(const ReductionShape& s, const Tensor& grad, const Tensor& x, const Tensor& weight,
         const Vector& bias, const Vector& norm_weight, double eps, Tensor* d_x,
         WeightGrads* d_weights) {
  const scalar_t* x_data = static_cast<const scalar_t*>(x.const_data_ptr());
  const scalar_t* grad_data = static_cast<const scalar_t*>(grad.const_data_ptr());
  const Tensor packed = packed_filters<scalar_t>(s, weight);
  ReduceGradArgs args;
  args.forward =
      reduce_args(s, x, packed, bias, {norm_weight.data(), nullptr, static_cast<float>(eps)});
  args.num_tokens = s.H * s.W;
  args.num_rows = s.B * s.kv_len();
  args.row_size = PVT_BEST_LEVEL(round_up)(s.C, kPackedColumns);
  args.column_size = PVT_BEST_LEVEL(round_up)(args.num_rows, 4);
  // Up to three rows more are read while four are transposed.
  const int64_t rows_size = args.column_size * args.row_size;
  Tensor memory = torch::stable::empty({3 * rows_size + s.C * args.column_size}, ScalarType::Float);
  args.d_conv = static_cast<float*>(memory.mutable_data_ptr());
  args.d_norm = args.d_conv + rows_size;
  args.d_conv_columns = args.d_norm + 2 * rows_size;

  const auto reduce = PVT_BEST_LEVEL(reduce_rows_backward<scalar_t>);
  const int64_t reduce_scratch = PVT_BEST_LEVEL(reduce_scratch_size)(s.C);
  parallel_for(args.num_rows, 6, [&](int64_t begin, int64_t end) {
    reduce(args, x_data, grad_data, begin, end, thread_scratch(reduce_scratch));
  });
  if (d_x != nullptr) {
    const Tensor rows = packed_rows<scalar_t>(s, weight);
    args.weight_rows = static_cast<const float*>(rows.const_data_ptr());
    const auto to_x = PVT_BEST_LEVEL(reduce_x_backward<scalar_t>);
    const int64_t chunk = PVT_BEST_LEVEL(kChunkRows);
    const int64_t scratch = PVT_BEST_LEVEL(reduce_x_scratch_size)(s.C);
    scalar_t* d_x_data = static_cast<scalar_t*>(d_x->mutable_data_ptr());
    parallel_tasks((args.num_rows + chunk - 1) / chunk, [&](int64_t task) {
      const int64_t begin = task * chunk;
      to_x(args, begin, std::min(begin + chunk, args.num_rows), d_x_data, thread_scratch(scratch));
    });
  }
  if (d_weights == nullptr) {
    return;
  }
  const auto transpose = PVT_BEST_LEVEL(transpose_d_conv);
  parallel_for(args.column_size / 4, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      transpose(args, 4 * i);
    }
  });
  const auto sum_columns = PVT_BEST_LEVEL(sum_columns);
  const auto to_weight = PVT_BEST_LEVEL(reduce_weight_backward<scalar_t>);
  const int64_t width = PVT_BEST_LEVEL(kWeightColumns);
  const int64_t strips = (s.C + width - 1) / width;
  float* d_weight = static_cast<float*>(d_weights->weight.mutable_data_ptr());
  float* d_vectors = static_cast<float*>(d_weights->vectors.mutable_data_ptr());
  parallel_tasks(s.sr_ratio * s.sr_ratio * strips, [&](int64_t task) {
    to_weight(args, x_data, task / strips, task % strips * width, d_weight,
              thread_scratch(args.num_rows * width));
  });
  parallel_for(args.row_size / kPackedColumns, 1, [&](int64_t begin, int64_t end) {
    const float* const parts[3] = {args.d_conv, args.d_norm,
                                   args.d_norm + args.num_rows * args.row_size};
    for (int64_t column = begin * kPackedColumns; column < end * kPackedColumns;
         column += kPackedColumns) {
      for (int i = 0; i < 3; ++i) {
        sum_columns(parts[i] + column, args.row_size, args.num_rows,
                    d_vectors + i * args.row_size + column);
      }
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_reduction_backward_cpu(
    const Tensor& grad, const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
    const Tensor& bias, const Tensor& norm_weight, int64_t sr_ratio, double eps, bool need_x,
    bool need_weights) {
  const ReductionShape s =
      check_spatial_reduction_backward(grad, x, H, W, weight, bias, norm_weight, sr_ratio);
  const ScalarType dtype = x.scalar_type();
  if (dtype == ScalarType::Double || s.B == 0) {
    return spatial_reduction_backward_aten(grad, x, H, W, weight, bias, norm_weight, sr_ratio, eps,
                                           need_x, need_weights);
  }
  const bool covered = H % sr_ratio == 0 && W % sr_ratio == 0;
  const std::vector<int64_t> x_size{s.B, H * W, s.C};
  Tensor d_x = !need_x   ? no_grad_like(x)
               : covered ? torch::stable::new_empty(x, x_size)
                         : torch::stable::new_zeros(x, x_size);
  std::optional<WeightGrads> sums;
  if (need_weights) {
    sums.emplace(s, PVT_BEST_LEVEL(round_up)(s.C, kPackedColumns));
  }
  const Tensor grad_rows = torch::stable::contiguous(grad), x_rows = with_dense_rows(x);
  const Tensor dense_weight = torch::stable::contiguous(weight);
  dispatch_dtype("spatial_reduction_backward", dtype, [&](auto type) {
    run<decltype(type)>(s, grad_rows, x_rows, dense_weight, Vector(bias), Vector(norm_weight), eps,
                        need_x ? &d_x : nullptr, sums ? &*sums : nullptr);
  });
  if (!need_weights) {
    return grad_of_x(d_x);
  }
  const auto finished = [&](const Tensor& t) {
    return torch::stable::to(torch::stable::contiguous(t), dtype);
  };
  const auto vector = [&](int64_t i) {
    Tensor row = torch::stable::select(sums->vectors, 0, i);
    return finished(torch::stable::clone(torch::stable::narrow(row, 0, 0, s.C)));
  };
  // sr_ratio, sr_ratio, C, C -> C, C, sr_ratio, sr_ratio
  const Tensor d_weight = call_aten(
      "aten::permute", "", torch::stable::narrow(sums->weight, 3, 0, s.C), Ints{2, 3, 0, 1});
  return {d_x, finished(d_weight), vector(0), vector(1), vector(2)};
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("spatial_reduction_backward", TORCH_BOX(&pvt::spatial_reduction_backward_cpu));
}
