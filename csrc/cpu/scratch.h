// Per-thread working memory that is kept between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace pvt {

// What a kernel needs working memory for: of its own thread (kThread), or written by all threads of
// a parallel region and owned by the thread that opened it (kShared; kSums for the sums of a
// convolution within); of its own thread within a matrix product (kSplit).
enum class Scratch { kThread, kShared, kSums, kSplit };

// At least `count` floats, aligned to 64 bytes, uninitialised. The next call for the same purpose
// on the same thread may return the same memory: ask once, then divide it.
template <Scratch purpose = Scratch::kThread>
float* thread_scratch(int64_t count) {
  constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, kAlign); }
  };
  thread_local std::unique_ptr<float[], Free> memory;
  thread_local int64_t size = 0;
  if (count > size) {
    memory.reset();
    size = 0;  // first, so that a failure below leaves a valid state
    void* fresh = ::operator new[](count * sizeof(float), kAlign, std::nothrow);
    if (fresh == nullptr) {
      throw std::runtime_error("not enough memory: " + std::to_string(count * sizeof(float)) +
                               " bytes of working memory could not be allocated");
    }
    memory.reset(static_cast<float*>(fresh));
    size = count;
  }
  return memory.get();
}

}  // namespace pvt
