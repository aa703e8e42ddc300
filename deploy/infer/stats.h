// Times of one step of pvt_infer: the first run apart, percentiles of the others. No torch here.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace pvt {

class Stats {
 public:
  // One run over `images` images.
  void add(double milliseconds, int64_t images);

  // "first 12.3 ms, p50 4.1 ms, p95 4.6 ms, 243.1 images/s (100 runs)". The first run, which pays
  // for caches and compilation, is left out of the rest unless it is the only one. Percentiles are
  // per run, over the runs with as many images as the first.
  std::string report() const;

 private:
  struct Run {
    double milliseconds;
    int64_t images;
  };
  std::vector<Run> runs_;
};

// The q-quantile (0..1) by the nearest rank: the smallest value with at least that share below or
// at it. values must not be empty.
double quantile(std::vector<double> values, double q);

class Timer {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

}  // namespace pvt
