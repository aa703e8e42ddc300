// torch's parallel_for, whose callbacks may throw: the first exception reaches the caller as it is.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <exception>
#include <mutex>

namespace pvt {

// run(begin, end) on disjoint ranges that cover [0, count), at least `grain` long where possible.
template <class Run>
void parallel_for(int64_t count, int64_t grain, const Run& run) {
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      run(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      error = std::current_exception();
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

}  // namespace pvt
