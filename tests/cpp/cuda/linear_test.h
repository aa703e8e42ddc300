// A linear layer of what a LayerNorm leaves, and linear() on it.
#pragma once

#include <cmath>
#include <vector>

#include "cuda/cuda_test.h"
#include "cuda/linear_impl.h"

namespace pvt::cuda {

struct NormedLinear {
  std::vector<double> norm_weight, norm_bias, weight, bias;

  template <class scalar_t>
  static NormedLinear random(int64_t C, int64_t columns) {
    return {random_numbers<scalar_t>(C, 6, 0.1, 1), random_numbers<scalar_t>(C, 7, 0.1),
            random_numbers<scalar_t>(columns * C, 8, 1 / std::sqrt(C)),
            random_numbers<scalar_t>(columns, 9, 0.1)};
  }
  template <class Round>
  std::vector<double> operator()(const std::vector<double>& x, const Round& round) const {
    return round(
        linear(round(layer_norm(x.data(), x.size(), norm_weight, norm_bias, 1e-5)), weight, bias));
  }
};

// linear() that stores what the layer gives.
template <class scalar_t, int C, Source kSource, int kWarps, int kDepth, int kSlots>
using Linear = LinearConfig<scalar_t, C, kSource, Then::kStore, kWarps, kDepth, kSlots>;

// Runs linear() on `x`: tokens, or sums.
template <class Config>
Bits<typename Config::scalar_t> run_linear(const NormedLinear& layer, const void* x, int64_t rows,
                                           int splits, const std::vector<double>& sums_bias,
                                           int64_t columns, int block_columns) {
  using scalar_t = typename Config::scalar_t;
  const Floats norm_weight(layer.norm_weight), norm_bias(layer.norm_bias), bias(layer.bias);
  const Floats sums_b(sums_bias);
  const Bits<scalar_t> weight = packed<scalar_t>(layer.weight, columns, Config::C);
  Bits<scalar_t> out(std::vector<double>(rows * columns, NAN));
  const LinearArgs args{x,
                        rows,
                        splits,
                        sums_b.data(),
                        norm_weight.data(),
                        norm_bias.data(),
                        1e-5f,
                        weight.bytes(),
                        bias.data(),
                        out.data(),
                        static_cast<int>(columns),
                        block_columns};
  const int64_t blocks =
      (rows + Config::kRows - 1) / Config::kRows * ((columns + block_columns - 1) / block_columns);
  const int64_t conflicts =
      launch_on_host<Config>("linear", blocks, Config::kSharedBytes, 12,
                             [&](auto& block) { linear<Config>(block, args); });
  CHECK(conflicts == 0);
  return out;
}

}  // namespace pvt::cuda
