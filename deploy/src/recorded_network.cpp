#include "recorded_network.h"

#include <map>
#include <mutex>
#include <utility>

namespace pvt {
namespace {

class RecordedNetwork : public Network {
 public:
  RecordedNetwork(std::shared_ptr<const Network> network, Recorder recorder, size_t max_shapes)
      : network_(std::move(network)), recorder_(std::move(recorder)), max_shapes_(max_shapes) {}

  torch::Tensor preprocess(const torch::Tensor& pixels) const override {
    return network_->preprocess(pixels);
  }

  torch::Tensor forward(const torch::Tensor& batch) const override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (Recording* recording = recording_of(batch)) {
        return recording->replay(batch);
      }
    }
    return network_->forward(batch);
  }

 private:
  // nullptr beyond max_shapes_.
  Recording* recording_of(const torch::Tensor& batch) const {
    const Key key(batch.scalar_type(), batch.sizes().vec());
    const auto found = recordings_.find(key);
    if (found != recordings_.end()) {
      return found->second.get();
    }
    if (recordings_.size() >= max_shapes_) {
      return nullptr;
    }
    // Kept once it is complete: a batch that the network refuses leaves nothing.
    auto recording = recorder_(*network_, batch);
    return recordings_.emplace(key, std::move(recording)).first->second.get();
  }

  using Key = std::pair<torch::ScalarType, std::vector<int64_t>>;

  std::shared_ptr<const Network> network_;
  Recorder recorder_;
  size_t max_shapes_;
  mutable std::mutex mutex_;
  mutable std::map<Key, std::unique_ptr<Recording>> recordings_;
};

}  // namespace

std::shared_ptr<const Network> record_network(std::shared_ptr<const Network> network,
                                              Recorder recorder, size_t max_shapes) {
  return std::make_shared<RecordedNetwork>(std::move(network), std::move(recorder), max_shapes);
}

}  // namespace pvt
