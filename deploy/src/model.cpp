#include <pvt_ext/model.h>

#include <algorithm>

#include <torch/version.h>

#include "archive.h"
#include "network.h"
#include "recorded_network.h"

namespace pvt {
namespace {

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

// A program that goes through the images of a batch, or a list of labels, counts on these sizes.
void check_logits(const torch::Tensor& logits, const torch::Tensor& batch,
                  const std::optional<Metadata>& metadata) {
  if (logits.dim() == 2 && batch.dim() > 0 && logits.size(0) == batch.size(0) &&
      (!metadata.has_value() || logits.size(1) == metadata->num_classes)) {
    return;
  }
  throw ModelError("forward failed: expected logits [" +
                   (batch.dim() > 0 ? std::to_string(batch.size(0)) : "B") + ", " +
                   (metadata.has_value() ? std::to_string(metadata->num_classes) : "num_classes") +
                   "], got " + c10::str(logits.sizes()));
}

// Operators are looked up when torch loads the file; without them its error would not say where to
// get them.
void require_ops(const std::string& path, const Metadata& metadata, const std::string& ops_lib) {
  if (metadata.required_ops.empty()) {
    return;
  }
  std::string version;
  try {
    const OpsLibrary library = load_ops(ops_lib);
    version = library.version;
    if (library.ops_version < metadata.ops_version) {
      throw OpsError(path + ": needs operator version " + std::to_string(metadata.ops_version) +
                     " (exported by pvt_ext " + metadata.version + "), " + library.path + " (" +
                     library.version + ") has version " + std::to_string(library.ops_version));
    }
  } catch (const OpsError& error) {
    const std::string text = error.what();
    throw OpsError(text.rfind(path, 0) == 0 ? text
                                            : path + ": needs the operators " +
                                                  join(metadata.required_ops) + "; " + text);
  }
  if (const auto missing = missing_ops(metadata.required_ops); !missing.empty()) {
    throw OpsError(path + ": needs the operators " + join(missing) +
                   ", which the operator library " + version + " does not have");
  }
}

}  // namespace

std::string reason(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text =
      torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  const size_t begin = text.find_first_not_of(" \n");
  return begin == std::string::npos ? "unknown error"
                                    : text.substr(begin, text.find('\n', begin) - begin);
}

Model::Model(std::shared_ptr<const Network> network, std::optional<Metadata> metadata,
             torch::Device device)
    : network_(std::move(network)), metadata_(std::move(metadata)), device_(device) {}

Model Model::load(const std::string& path, torch::Device device, const std::string& ops_lib) {
  std::optional<Metadata> metadata = inspect_model(path);
  if (metadata.has_value()) {
    require_ops(path, *metadata, ops_lib);
    if (device.is_cuda() && !metadata->required_ops.empty()) {
      load_cuda_kernels();
    }
  } else if (!ops_lib.empty()) {
    load_ops(ops_lib);
  }
  auto network = metadata.has_value() && metadata->compiled.has_value()
                     ? load_package(path, *metadata, device)
                     : load_torchscript(path, metadata.has_value(), device);
  return {std::move(network), std::move(metadata), device};
}

Model Model::with_cuda_graphs(size_t max_shapes) const {
  if (!device_.is_cuda()) {
    throw DeviceError("CUDA graphs: expected a model on a CUDA device, got one on " +
                      device_.str());
  }
  return {record_network(network_, cuda_graph_recorder(), max_shapes), metadata_, device_};
}

torch::Tensor Model::preprocess(const Image& image) const {
  const c10::InferenceMode guard;
  // A view of the caller's pixels: the module only reads them.
  const auto pixels =
      torch::from_blob(const_cast<uint8_t*>(image.rgb.data()), {image.height, image.width, 3},
                       torch::TensorOptions().dtype(torch::kUInt8));
  return network_->preprocess(pixels).cpu();
}

torch::Tensor Model::forward(const torch::Tensor& batch) const {
  const c10::InferenceMode guard;
  // Pinned memory is copied while this thread goes on to queue the network; the answer waits.
  const bool pinned = device_.is_cuda() && batch.is_pinned();
  const torch::Tensor logits = network_->forward(batch.to(device_, /*non_blocking=*/pinned));
  check_logits(logits, batch, metadata_);
  return logits.to(torch::kFloat).cpu();
}

std::vector<std::vector<Prediction>> top_k(const torch::Tensor& logits, int64_t k) {
  TORCH_CHECK(logits.dim() == 2, "top_k: expected logits [B, num_classes], got ", logits.sizes());
  const c10::InferenceMode guard;
  const torch::Tensor scores = logits.to(torch::kCPU, torch::kDouble);
  const torch::Tensor probabilities = scores.softmax(1);
  // Stable, so that equal classes come in the order of their index.
  const torch::Tensor order =
      std::get<1>(scores.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true));
  const int64_t count = std::min(k, logits.size(1));
  std::vector<std::vector<Prediction>> rows(static_cast<size_t>(logits.size(0)));
  for (int64_t b = 0; b < logits.size(0); ++b) {
    for (int64_t i = 0; i < count; ++i) {
      const auto index = order[b][i].item<int64_t>();
      rows[static_cast<size_t>(b)].push_back(
          {index, probabilities[b][index].item<double>(), scores[b][index].item<double>()});
    }
  }
  return rows;
}

torch::Device parse_device(const std::string& name) {
  const bool cuda = name == "cuda" || name.rfind("cuda:", 0) == 0;
  const bool numbered =
      name.size() > 5 && name.size() < 9 &&
      std::all_of(name.begin() + 5, name.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (name == "cpu") {
    return torch::kCPU;
  }
  if (!cuda || (name != "cuda" && !numbered)) {
    throw DeviceError("device: expected cpu, cuda or cuda:<index>, got " + name);
  }
  if (!at::hasCUDA()) {
    throw DeviceError("device " + name + ": there is no CUDA device here, or torch " +
                      TORCH_VERSION + " is a build for CPUs; use --device cpu");
  }
  const int index = numbered ? std::stoi(name.substr(5)) : 0;
  if (const auto count = static_cast<int>(at::getNumGPUs()); index >= count) {
    throw DeviceError("device " + name + ": this machine has " + std::to_string(count) +
                      " CUDA device(s)");
  }
  return {torch::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

const char* runtime_version() {
  return PVT_VERSION;
}

}  // namespace pvt
