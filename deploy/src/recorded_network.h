// A network that is recorded at the first batch of each shape, and replayed for those after it.
#pragma once

#include <functional>
#include <memory>

#include "network.h"

namespace pvt {

// forward() for batches of one shape and dtype.
class Recording {
 public:
  virtual ~Recording() = default;

  // A new tensor at every call. Never called by two threads at once.
  virtual torch::Tensor replay(const torch::Tensor& batch) = 0;
};

// Makes a recording for batches like this one. Never called by two threads at once.
using Recorder =
    std::function<std::unique_ptr<Recording>(const Network& network, const torch::Tensor& batch)>;

// Shapes beyond the first max_shapes are not recorded but run as `network` runs them.
std::shared_ptr<const Network> record_network(std::shared_ptr<const Network> network,
                                              Recorder recorder, size_t max_shapes);

// Records CUDA graphs; DeviceError where this runtime was built without CUDA. All recordings of one
// recorder share their memory.
Recorder cuda_graph_recorder();

}  // namespace pvt
