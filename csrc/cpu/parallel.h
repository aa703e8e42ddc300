// torch's parallel_for, whose callbacks may throw: the first exception reaches the caller as it is.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "cpu/cpu_level.h"

namespace pvt {

// run(begin, end) on disjoint ranges that cover [0, count), at least `grain` long where possible.
// What it did with tiles ends with it.
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
    release_tiles();
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

// run(task) for every task in [0, count), in any order: a thread takes the next one when it is
// done, so that a thread that was held up costs one task at most.
template <class Run>
void parallel_tasks(int64_t count, const Run& run) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  parallel_for(threads, 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      run(task);
    }
  });
}

}  // namespace pvt
