#include "stats.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace pvt {

void Stats::add(double milliseconds, int64_t images) {
  runs_.push_back({milliseconds, images});
}

std::string Stats::report() const {
  if (runs_.empty()) {
    return "no runs";
  }
  std::vector<double> same_size;
  double total = 0;
  int64_t images = 0;
  for (size_t i = runs_.size() > 1 ? 1 : 0; i < runs_.size(); ++i) {
    total += runs_[i].milliseconds;
    images += runs_[i].images;
    if (runs_[i].images == runs_[0].images) {
      same_size.push_back(runs_[i].milliseconds);
    }
  }
  if (same_size.empty()) {
    same_size.push_back(runs_[0].milliseconds);
  }
  char text[160];
  std::snprintf(text, sizeof text,
                "first %.2f ms, p50 %.2f ms, p95 %.2f ms, %.1f images/s (%zu runs)",
                runs_[0].milliseconds, quantile(same_size, 0.5), quantile(same_size, 0.95),
                1000.0 * static_cast<double>(images) / total, runs_.size());
  return text;
}

double quantile(std::vector<double> values, double q) {
  const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(values.size())));
  const size_t index = std::clamp<size_t>(rank, 1, values.size()) - 1;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(index),
                   values.end());
  return values[index];
}

}  // namespace pvt
