// An exported model (pvt_small.pt or .pt2) in C++: from a decoded image to its classes.
//
//   const auto model = pvt::Model::load("pvt_small.pt");
//   const auto image = model.preprocess(pvt::read_image("cat.jpg"));
//   const auto best = pvt::top_k(model.forward(image.unsqueeze(0)), 5)[0];
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/script.h>

#include <pvt_ext/decode.h>
#include <pvt_ext/errors.h>
#include <pvt_ext/metadata.h>
#include <pvt_ext/ops_library.h>

namespace pvt {

class Network;

// Any number of threads may use one Model at the same time. What fails inside the network is a
// std::runtime_error of one line.
class PVT_RUNTIME_API Model {
 public:
  // Before torch sees the file, its pvt.json is read and checked against the operators at hand, so
  // that what is missing is said in one line (ModelError, OpsError, DeviceError). ops_lib: see
  // load_ops. The content, not the name, tells TorchScript from a package (.pt2). A TorchScript
  // file without pvt.json is taken if it has the two methods below. A package is a program: loading
  // it runs its code.
  static Model load(const std::string& path, torch::Device device = torch::kCPU,
                    const std::string& ops_lib = "");

  // What pvt.json says; empty for a file without one.
  const std::optional<Metadata>& metadata() const { return metadata_; }
  torch::Device device() const { return device_; }

  // The file's own preprocessing -> float32 [3, height, width] on the CPU.
  torch::Tensor preprocess(const Image& image) const;

  // The same model with forward() recorded as a CUDA graph at the first batch of each shape, and
  // replayed for those after it: one launch instead of one per kernel. Shapes beyond the first
  // max_shapes run as before; one that cannot be recorded is an error at every call. Replays of one
  // model follow one another, whatever their threads. DeviceError for a model that is not on a GPU,
  // or a runtime that was built without CUDA.
  Model with_cuda_graphs(size_t max_shapes = 16) const;

  // batch: float32 [B, 3, H, W] on any device -> logits float32 [B, num_classes] on the CPU.
  // ModelError if the network gives another number of rows, or of classes than pvt.json says.
  torch::Tensor forward(const torch::Tensor& batch) const;

 private:
  Model(std::shared_ptr<const Network> network, std::optional<Metadata> metadata,
        torch::Device device);

  std::shared_ptr<const Network> network_;
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
