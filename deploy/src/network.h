// What a Model runs: the two functions of a model file, whatever its kind.
#pragma once

#include <memory>
#include <string>

#include <torch/script.h>

#include <pvt_ext/metadata.h>

namespace pvt {

class Network {
 public:
  virtual ~Network() = default;

  // uint8 [H, W, 3] -> float32 [3, height, width]
  virtual torch::Tensor preprocess(const torch::Tensor& pixels) const = 0;

  // float32 [B, 3, H, W] -> logits [B, num_classes]
  virtual torch::Tensor forward(const torch::Tensor& batch) const = 0;
};

// Both may be called by any number of threads at once; what fails inside them is one line.
// ModelError, OpsError and DeviceError as Model::load has them.
std::shared_ptr<const Network> load_torchscript(const std::string& path, bool has_metadata,
                                                torch::Device device);
std::shared_ptr<const Network> load_package(const std::string& path, const Metadata& metadata,
                                            torch::Device device);

// The line of a torch error that says what happened; the rest are stack and source lines.
std::string reason(const std::exception& error);

}  // namespace pvt
