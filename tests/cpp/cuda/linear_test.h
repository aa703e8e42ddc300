// The kernels of a linear layer on a CPU, and a layer of what a LayerNorm leaves.
#pragma once

#include <cmath>
#include <vector>

#include "cuda/cuda_test.h"
#include "cuda/split_linear_impl.h"

namespace pvt::cuda {

// Which of the four kernels a Config is of.
template <class Config>
concept IsNormed = requires { Config::kSource; };  // inputs in registers, after a LayerNorm
template <class Config>
concept IsSplit = requires { Config::kWays; };

template <class Config>
using ArgsOf = std::conditional_t<IsNormed<Config>, LinearArgs, StreamedLinearArgs>;

template <class Config>
constexpr const char* kKernelName =
    IsSplit<Config>    ? IsNormed<Config> ? "split_linear" : "split_streamed_linear"
    : IsNormed<Config> ? "linear"
                       : "streamed_linear";

template <class Config, class Block>
void run_kernel(Block& block, const ArgsOf<Config>& args) {
  if constexpr (IsSplit<Config> && IsNormed<Config>) {
    split_linear<Config>(block, args);
  } else if constexpr (IsSplit<Config>) {
    split_streamed_linear<Config>(block, args);
  } else if constexpr (IsNormed<Config>) {
    linear<Config>(block, args);
  } else {
    streamed_linear<Config>(block, args);
  }
}

// Runs it.   block_columns: of a block that has more than one group of columns
template <class Config>
void run_on_host(ArgsOf<Config> args, int block_columns = Config::kColumns) {
  args.block_columns = block_columns;
  const int64_t blocks = (args.rows + Config::kRows - 1) / Config::kRows *
                         ((args.columns + block_columns - 1) / block_columns);
  const int64_t conflicts =
      launch_on_host<Config>(kKernelName<Config>, blocks, Config::kSharedBytes, 12,
                             [&](auto& block) { run_kernel<Config>(block, args); });
  CHECK(conflicts == 0);
}

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

// split_linear() that stores it, in the shape that it has.
template <class scalar_t, int C, Source kSource, int kWays>
using SplitLinear = SplitLinearConfig<scalar_t, C, kSource, Then::kStore, 2, kWays, 3>;

// The layer of `x`: tokens, or sums.
template <class Config>
Bits<typename Config::scalar_t> run_linear(const NormedLinear& layer, const void* x, int64_t rows,
                                           int splits, const std::vector<double>& sums_bias,
                                           int64_t columns, int block_columns = Config::kColumns) {
  using scalar_t = typename Config::scalar_t;
  const Floats norm_weight(layer.norm_weight), norm_bias(layer.norm_bias), bias(layer.bias);
  const Floats sums_b(sums_bias);
  const Bits<scalar_t> weight = packed<scalar_t>(layer.weight, columns, Config::C);
  Bits<scalar_t> out(std::vector<double>(rows * columns, NAN));
  run_on_host<Config>({x, rows, splits, sums_b.data(), norm_weight.data(), norm_bias.data(), 1e-5f,
                       weight.bytes(), bias.data(), out.data(), static_cast<int>(columns), 0},
                      block_columns);
  return out;
}

}  // namespace pvt::cuda
