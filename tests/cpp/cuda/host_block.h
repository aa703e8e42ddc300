// A block on a CPU: a thread per warp, and asynchronous copies that arrive as late as they may. The
// same operations as csrc/cuda/device_block.h.
#pragma once

#include <algorithm>
#include <barrier>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "cuda/host_warp.h"
#include "cuda/kernels_ran.h"

namespace pvt::cuda {

#if defined(PVT_WARPS_AT_ONCE)
// For the thread sanitizer: warps run at the same time, and nothing but the kernel's own barriers
// orders what they do, so that it sees every pair of accesses that these leave open.
class Turns {
 public:
  Turns(int warps, unsigned /*seed*/) : barrier_(warps) {}

  void begin(int /*warp*/) {}
  void sync(int /*warp*/) { barrier_.arrive_and_wait(); }
  void end() { barrier_.arrive_and_drop(); }

 private:
  std::barrier<> barrier_;
};
#else
// Lets the warps of a block run from barrier to barrier one after the other, each time in another
// order: a warp that needs what another one does without a barrier between them finds it undone.
class Turns {
 public:
  Turns(int warps, unsigned seed) : order_(warps), generator_(seed) {
    std::iota(order_.begin(), order_.end(), 0);
    next_phase();
  }

  void begin(int warp) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_turn(warp); });
  }
  void sync(int warp) {
    std::unique_lock lock(mutex_);
    pass_turn();
    changed_.wait(lock, [&] { return is_turn(warp); });
  }
  void end() {
    std::unique_lock lock(mutex_);
    pass_turn();
  }

 private:
  bool is_turn(int warp) const { return order_[turn_] == warp; }
  void pass_turn() {
    if (++turn_ == order_.size())
      next_phase();
    changed_.notify_all();
  }
  // The warp that comes last does not come first: it would not notice that others had their turn.
  void next_phase() {
    const int last = order_.back();
    do {
      std::shuffle(order_.begin(), order_.end(), generator_);
    } while (order_.size() > 1 && order_.front() == last);
    turn_ = 0;
  }

  std::vector<int> order_;
  std::mt19937 generator_;
  size_t turn_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
};
#endif

template <int kWarps, class Warp_ = HostWarp>
class HostBlock {
 public:
  using Warp = Warp_;
  static constexpr int kThreads = kWarps * kLanes;

  HostBlock(int64_t index, int64_t count, int warp, char* shared, Turns& turns)
      : index_(index), count_(count), warp_(warp), shared_(shared), turns_(turns) {}

  int64_t index() const { return index_; }
  int64_t count() const { return count_; }
  int warp() const { return warp_; }
  char* shared() const { return shared_; }
  void sync() { turns_.sync(warp_); }

  template <class Run>
  void each_thread(const Run& run) {
    for (int lane = 0; lane < kLanes; ++lane) {
      addresses_[lane].clear();
      lane_ = lane;
      run(warp_ * kLanes + lane);
    }
    for (size_t i = 0; i < addresses_[0].size(); ++i) {
      std::vector<const char*> together;  // the i-th copies of 4 bytes are one instruction
      for (const auto& addresses : addresses_)
        together.push_back(addresses.at(i));
      count_bank_conflicts(together, 4);
    }
  }

  void copy(char* to, const void* from, bool valid = true) { begin_copy(to, from, kVector, valid); }
  void copy_word(char* to, const void* from) {
    addresses_[lane_].push_back(to);
    begin_copy(to, from, 4, true);
  }
  template <int kBytes>
  void copy_piece(char* to, const char* from) {
    each_thread([&](int thread) {
      for (int vector = thread; vector < kBytes / kVector; vector += kThreads)
        copy(to + vector * kVector, from + vector * kVector);
    });
  }
  void commit() { groups_.emplace_back(); }

  template <int kPending>
  void wait() {
    while (groups_.size() > kPending + 1) {  // the last one is open
      for (const Copy& copy : groups_.front()) {
        if (copy.from == nullptr) {
          std::memset(copy.to, 0, copy.size);
        } else {
          std::memcpy(copy.to, copy.from, copy.size);
        }
      }
      groups_.pop_front();
    }
  }

 private:
  struct Copy {
    char* to;
    const void* from;
    int size;
  };

  // Until it is waited for, there are NaNs.
  void begin_copy(char* to, const void* from, int size, bool valid) {
    check_aligned(to, size);
    if (valid)
      check_aligned(from, size);
    std::memset(to, 0xff, size);
    groups_.back().push_back({to, valid ? from : nullptr, size});
  }

  int64_t index_, count_;
  int warp_;
  char* shared_;
  Turns& turns_;
  int lane_ = 0;
  std::array<std::vector<const char*>, kLanes> addresses_;
  std::deque<std::vector<Copy>> groups_{1};
};

// Runs kernel(block) in every warp of a grid with so many bytes of shared memory to a block.
// Returns the number of bank conflicts.
template <int kWarps, class Warp = HostWarp, class Kernel>
int64_t launch_on_host(int64_t blocks, int64_t shared_bytes, unsigned seed, const Kernel& kernel) {
  int64_t conflicts = 0;
  for (int64_t index = 0; index < blocks; ++index) {
    std::vector<char> memory(shared_bytes, static_cast<char>(0xff));
    char* const shared = memory.data();  // on a 16-byte boundary
    Turns turns(kWarps, seed + static_cast<unsigned>(index));
    std::array<std::exception_ptr, kWarps> errors;
    std::array<int64_t, kWarps> counts{};
    std::vector<std::thread> warps;
    for (int warp = 0; warp < kWarps; ++warp) {
      warps.emplace_back([&, warp] {
        turns.begin(warp);
        bank_conflicts = 0;
        HostBlock<kWarps, Warp> block(index, blocks, warp, shared, turns);
        try {
          kernel(block);
        } catch (...) {
          errors[warp] = std::current_exception();
        }
        counts[warp] = bank_conflicts;
        turns.end();
      });
    }
    for (std::thread& warp : warps)
      warp.join();
    for (const std::exception_ptr& error : errors) {
      if (error != nullptr)
        std::rethrow_exception(error);
    }
    conflicts += std::accumulate(counts.begin(), counts.end(), int64_t{0});
  }
  return conflicts;
}

// The same for a kernel of a Config, whose name in csrc/cuda/resources.txt is <name>_kernel.
template <class Config, class Warp = HostWarp, class Kernel>
int64_t launch_on_host(const char* name, int64_t blocks, int64_t shared_bytes, unsigned seed,
                       const Kernel& kernel) {
  KernelsRan::list().add<Config>(name);
  return launch_on_host<Config::kWarps, Warp>(blocks, shared_bytes, seed, kernel);
}

}  // namespace pvt::cuda
