// Which batches are recorded and replayed. The recordings here run the network again on a tensor of
// their own, as a CUDA graph does, and notice two threads in one; tests/gpu has the real ones.
#include <torch/script.h>

#include <atomic>
#include <thread>

#include "recorded_network.h"

// torch and doctest both have a CHECK.
#undef CHECK
#include <doctest/doctest.h>

namespace {

class Sums : public pvt::Network {
 public:
  torch::Tensor preprocess(const torch::Tensor& pixels) const override { return pixels + 1; }

  torch::Tensor forward(const torch::Tensor& batch) const override {
    ++forwards;
    if (batch.dim() != 4) {
      throw std::runtime_error("forward failed: expected an image batch");
    }
    return batch.sum({1, 2, 3});
  }

  mutable std::atomic<int> forwards{0};
};

struct Counts {
  std::atomic<int> recorded{0}, replayed{0}, inside{0};
  std::atomic<bool> at_once{false};
};

class Again : public pvt::Recording {
 public:
  Again(Counts& counts, const pvt::Network& network, const torch::Tensor& batch)
      : counts_(counts), network_(network), input_(batch.clone()) {
    network_.forward(input_);
    ++counts_.recorded;
  }

  torch::Tensor replay(const torch::Tensor& batch) override {
    if (counts_.inside++ > 0) {
      counts_.at_once = true;
    }
    ++counts_.replayed;
    input_.copy_(batch);
    torch::Tensor output = network_.forward(input_);
    --counts_.inside;
    return output;
  }

 private:
  Counts& counts_;
  const pvt::Network& network_;
  torch::Tensor input_;
};

struct Case {
  explicit Case(size_t max_shapes)
      : network(pvt::record_network(
            sums,
            [this](const pvt::Network& of, const torch::Tensor& batch) {
              return std::make_unique<Again>(counts, of, batch);
            },
            max_shapes)) {}

  std::shared_ptr<Sums> sums = std::make_shared<Sums>();
  Counts counts;
  std::shared_ptr<const pvt::Network> network;
};

torch::Tensor batch_of(int64_t images, double value = 1, int64_t size = 4) {
  return torch::full({images, 3, size, size}, value);
}

}  // namespace

TEST_CASE("each shape is recorded once, and its recording answers from then on") {
  Case c(16);
  const torch::Tensor first = c.network->forward(batch_of(2, 1));
  const torch::Tensor second = c.network->forward(batch_of(2, 2));
  CHECK(torch::equal(first, torch::full({2}, 48.0)));  // not overwritten by the second
  CHECK(torch::equal(second, torch::full({2}, 96.0)));
  CHECK(c.counts.recorded == 1);
  CHECK(torch::equal(c.network->forward(batch_of(3)), torch::full({3}, 48.0)));
  CHECK(torch::equal(c.network->forward(batch_of(2, 1, 8)), torch::full({2}, 192.0)));
  const torch::Tensor in_double = c.network->forward(batch_of(2).to(torch::kDouble));
  CHECK(in_double.dtype().name() == "double");
  CHECK(c.counts.recorded == 4);
  CHECK(c.counts.replayed == 5);
  CHECK(c.sums->forwards == 9);  // nothing beside them
}

TEST_CASE("shapes beyond the limit run without a recording") {
  Case c(2);
  for (int64_t images = 1; images < 5; ++images) {
    for (int round = 0; round < 2; ++round) {
      CHECK(torch::equal(c.network->forward(batch_of(images)), torch::full({images}, 48.0)));
    }
  }
  CHECK(c.counts.recorded == 2);
  CHECK(c.counts.replayed == 4);
}

TEST_CASE("what the network refuses is not recorded, and preprocessing passes by") {
  Case c(1);
  CHECK_THROWS_WITH(c.network->forward(torch::zeros({3})),
                    "forward failed: expected an image batch");
  CHECK(c.counts.recorded == 0);
  c.network->forward(batch_of(1));
  CHECK(c.counts.replayed == 1);
  CHECK(torch::equal(c.network->preprocess(torch::zeros({2})), torch::ones({2})));
}

TEST_CASE("threads take turns") {
  Case c(2);
  std::atomic<bool> right{true};
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < 50; ++round) {
        const double value = static_cast<double>(thread * 50 + round);
        const int64_t images = 1 + thread % 3;
        if (!torch::equal(c.network->forward(batch_of(images, value)),
                          torch::full({images}, 48.0 * value))) {
          right = false;
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(right);
  CHECK(!c.counts.at_once);
  CHECK(c.counts.recorded == 2);
}
