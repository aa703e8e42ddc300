// An exported model (pvt_small.pt) in C++: from a decoded image to its classes.
//
//   const auto model = pvt::Model::load("pvt_small.pt");
//   const auto image = model.preprocess(pvt::read_image("cat.jpg"));
//   const auto best = pvt::top_k(model.forward(image.unsqueeze(0)), 5)[0];
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <torch/script.h>

#include <pvt_ext/decode.h>
#include <pvt_ext/errors.h>
#include <pvt_ext/metadata.h>
#include <pvt_ext/ops_library.h>

namespace pvt {

// Any number of threads may use one Model at the same time. What fails inside the module is a
// std::runtime_error of one line.
class PVT_RUNTIME_API Model {
 public:
  // Before torch sees the file, its pvt.json is read and checked against the operators at hand, so
  // that what is missing is said in one line (ModelError, OpsError, DeviceError). ops_lib: see
  // load_ops. A TorchScript file without pvt.json is taken if it has the two methods below.
  static Model load(const std::string& path, torch::Device device = torch::kCPU,
                    const std::string& ops_lib = "");

  // What pvt.json says; empty for a file without one.
  const std::optional<Metadata>& metadata() const { return metadata_; }
  torch::Device device() const { return device_; }

  // The module's own preprocessing -> float32 [3, height, width] on the CPU.
  torch::Tensor preprocess(const Image& image) const;

  // batch: float32 [B, 3, H, W] on any device -> logits float32 [B, num_classes] on the CPU.
  torch::Tensor forward(const torch::Tensor& batch) const;

 private:
  Model(torch::jit::Module module, std::optional<Metadata> metadata, torch::Device device);

  torch::jit::Module module_;
  std::optional<Metadata> metadata_;
  torch::Device device_;
};

struct Prediction {
  int64_t index;
  double probability;  // softmax over all classes
  double logit;
};

// logits [B, num_classes] -> the k best of each row, best first (fewer if there are fewer classes).
PVT_RUNTIME_API std::vector<std::vector<Prediction>> top_k(const torch::Tensor& logits, int64_t k);

// "cpu", "cuda" or "cuda:<index>" of this machine, else DeviceError.
PVT_RUNTIME_API torch::Device parse_device(const std::string& name);

// "0.1.0"
PVT_RUNTIME_API const char* runtime_version();

}  // namespace pvt
