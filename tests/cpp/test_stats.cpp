#include <doctest/doctest.h>

#include "stats.h"

TEST_CASE("quantiles by the nearest rank") {
  CHECK(pvt::quantile({5}, 0.5) == 5);
  CHECK(pvt::quantile({4, 1, 3, 2}, 0.5) == 2);
  std::vector<double> hundred;
  for (int i = 100; i >= 1; --i) {
    hundred.push_back(i);
  }
  CHECK(pvt::quantile(hundred, 0.95) == 95);
  CHECK(pvt::quantile(hundred, 1.0) == 100);
  CHECK(pvt::quantile(hundred, 0.0) == 1);
}

TEST_CASE("the first run is apart from the others") {
  pvt::Stats stats;
  CHECK(stats.report() == "no runs");
  stats.add(100, 2);
  CHECK(stats.report() == "first 100.00 ms, p50 100.00 ms, p95 100.00 ms, 20.0 images/s (1 runs)");
  stats.add(10, 2);
  stats.add(30, 2);
  CHECK(stats.report() == "first 100.00 ms, p50 10.00 ms, p95 30.00 ms, 100.0 images/s (3 runs)");
  // A smaller last batch counts for the rate, not for the percentiles.
  stats.add(5, 1);
  CHECK(stats.report() == "first 100.00 ms, p50 10.00 ms, p95 30.00 ms, 111.1 images/s (4 runs)");
}
