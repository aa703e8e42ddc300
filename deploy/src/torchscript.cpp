// A TorchScript file as a Network: both functions are methods of its module.
#include <torch/version.h>

#include <pvt_ext/errors.h>

#include "network.h"

namespace pvt {
namespace {

// TorchScript's own errors quote the module's source first and say what happened in the last line.
std::string last_line(const std::exception& error) {
  std::string text = reason(error);
  if (text.find("TorchScript interpreter") == std::string::npos) {
    return text;
  }
  text = error.what();
  text.erase(text.find_last_not_of(" \n") + 1);
  return text.substr(text.rfind('\n') + 1);
}

class TorchScriptNetwork : public Network {
 public:
  explicit TorchScriptNetwork(torch::jit::Module module) : module_(std::move(module)) {}

  torch::Tensor preprocess(const torch::Tensor& pixels) const override {
    return call("preprocess", pixels);
  }

  torch::Tensor forward(const torch::Tensor& batch) const override {
    return call("forward", batch);
  }

 private:
  torch::Tensor call(const char* method, const torch::Tensor& input) const {
    try {
      return module_.get_method(method)({input}).toTensor();
    } catch (const std::exception& error) {
      throw std::runtime_error(std::string(method) + " failed: " + last_line(error));
    }
  }

  torch::jit::Module module_;
};

torch::jit::Module load_module(const std::string& path, torch::Device device) {
  try {
    torch::jit::Module module = torch::jit::load(path, device);
    module.eval();
    return module;
  } catch (const std::exception& error) {
    const std::string text = reason(error);
    if (text.find("nknown builtin op: pvt::") != std::string::npos) {
      throw OpsError(path + ": " + text + " Is the operator library (--ops-lib) too old?");
    }
    throw ModelError(path + ": cannot be loaded by torch " + TORCH_VERSION + ": " + text);
  }
}

}  // namespace

std::shared_ptr<const Network> load_torchscript(const std::string& path, bool has_metadata,
                                                torch::Device device) {
  torch::jit::Module module = load_module(path, device);
  for (const char* method : {"forward", "preprocess"}) {
    if (!module.find_method(method).has_value()) {
      throw ModelError(path + ": a TorchScript file without " +
                       (has_metadata ? "" : "pvt.json and without ") + "a method '" + method +
                       "'; export it with: pvt export");
    }
  }
  return std::make_shared<TorchScriptNetwork>(std::move(module));
}

}  // namespace pvt
