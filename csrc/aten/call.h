// Calls an ATen operator by name through the stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "shim.h"

namespace pvt {

// aten::<name>.<overload>(args...) -> Tensor. The argument types must be exactly the schema's
// (int64_t, double, bool, Tensor, std::optional<...>, std::vector<...>), defaults included.
template <class... Args>
torch::stable::Tensor call_aten(const char* name, const char* overload, Args... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace pvt
