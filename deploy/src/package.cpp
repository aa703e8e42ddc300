// A package of compiled code (.pt2) as a Network: AOTInductor's library inside it computes the
// logits, this runtime the preprocessing.
#include <dlfcn.h>
#include <sys/utsname.h>
#include <zlib.h>

#include <thread>

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <pvt_ext/errors.h>

#include "network.h"
#include "preprocess.h"

namespace pvt {
namespace {

using torch::inductor::AOTIModelPackageLoader;

std::string by(const std::array<int64_t, 2>& size) {
  return std::to_string(size[0]) + " x " + std::to_string(size[1]);
}

std::string machine() {
  utsname name{};
  uname(&name);
  return name.machine;
}

// What the preprocessing computes with; nothing else has looked at these numbers yet.
void check_preprocess(const std::string& path, const Metadata::Preprocess& p) {
  constexpr int64_t kMaxSide = 1 << 16;
  const auto fits = [](int64_t side) { return side >= 1 && side <= kMaxSide; };
  if ((p.mode != "shorter" && p.mode != "squash") || !fits(p.resize) || !fits(p.crop[0]) ||
      !fits(p.crop[1])) {
    throw ModelError(path + ": pvt.json inside the model: preprocess is not understood (mode " +
                     p.mode + ", resize " + std::to_string(p.resize) + ", crop " + by(p.crop) +
                     ")");
  }
}

// The loader would run another library than the one that was exported, and where it is absent
// compile what it finds instead.
void check_library(const std::string& path, const Metadata::Compiled& compiled) {
  uLong checksum = 0;
  try {
    caffe2::serialize::PyTorchStreamReader archive(path);
    const auto [data, size] = archive.getRecord(compiled.library);
    checksum = crc32_z(0, static_cast<const Bytef*>(data.get()), size);
  } catch (const c10::Error&) {
    throw ModelError(path + ": damaged (" + compiled.library + " cannot be read)");
  }
  if (static_cast<int64_t>(checksum) != compiled.crc32) {
    throw ModelError(path + ": damaged (checksum of " + compiled.library + ")");
  }
}

class PackageNetwork : public Network {
 public:
  PackageNetwork(std::unique_ptr<AOTIModelPackageLoader> loader, const Metadata& metadata)
      : loader_(std::move(loader)),
        in_chans_(metadata.in_chans),
        preprocess_(metadata.preprocess),
        compiled_(*metadata.compiled) {}

  torch::Tensor preprocess(const torch::Tensor& pixels) const override {
    try {
      return pvt::preprocess(pixels, preprocess_);
    } catch (const std::exception& error) {
      throw std::runtime_error("preprocess failed: " + reason(error));
    }
  }

  torch::Tensor forward(const torch::Tensor& batch) const override {
    check_image(batch);
    try {
      // The compiled code takes contiguous float32 for granted.
      return loader_->run({batch.to(torch::kFloat).contiguous()}).at(0);
    } catch (const std::exception& error) {
      throw std::runtime_error("forward failed: " + reason(error));
    }
  }

 private:
  void check_image(const torch::Tensor& x) const {
    if (x.dim() != 4 || x.size(1) != in_chans_) {
      throw std::runtime_error("forward failed: expected an image batch [B, " +
                               std::to_string(in_chans_) + ", H, W], got shape " +
                               c10::str(x.sizes()));
    }
    const std::array<int64_t, 2> size{x.size(2), x.size(3)};
    if (size[0] < compiled_.min_size[0] || size[1] < compiled_.min_size[1]) {
      throw std::runtime_error("forward failed: expected an image of at least " +
                               by(compiled_.min_size) + ", got " + by(size));
    }
  }

  std::unique_ptr<AOTIModelPackageLoader> loader_;
  int64_t in_chans_;
  Metadata::Preprocess preprocess_;
  Metadata::Compiled compiled_;
};

}  // namespace

std::shared_ptr<const Network> load_package(const std::string& path, const Metadata& metadata,
                                            torch::Device device) {
  const Metadata::Compiled& compiled = *metadata.compiled;
  if (compiled.machine != machine()) {
    throw ModelError(path + ": compiled for " + compiled.machine + ", this machine is " +
                     machine() +
                     "; export it again on such a machine, or as TorchScript, which runs on any");
  }
  if (const std::string type = c10::DeviceTypeName(device.type(), /*lower_case=*/true);
      compiled.device != type) {
    throw DeviceError(path + ": compiled for device " + compiled.device + ", not for " + type);
  }
  check_preprocess(path, metadata.preprocess);
  check_library(path, compiled);
  // Some builds of torch make packages that name libtorch.so, which a C++ program need not have
  // loaded. Found where this library finds the rest of torch; where it is not, the loader says so.
  dlopen("libtorch.so", RTLD_NOW | RTLD_GLOBAL);
  // Concurrent calls share the weights; more of them than there are runners wait.
  const size_t num_runners = std::max(1U, std::thread::hardware_concurrency());
  try {
    return std::make_shared<PackageNetwork>(
        std::make_unique<AOTIModelPackageLoader>(path, "model", /*run_single_threaded=*/false,
                                                 num_runners),
        metadata);
  } catch (const std::exception& error) {
    throw ModelError(path + ": compiled with torch " + metadata.torch +
                     ", cannot be loaded by torch " + TORCH_VERSION + ": " + reason(error));
  }
}

}  // namespace pvt
