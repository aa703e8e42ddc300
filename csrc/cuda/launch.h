// From a tensor to a kernel: its device, its stream, and what the device offers.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>
#include <cstdlib>
#include <string>

#include "checks.h"
#include "cuda/begin_kernel.h"
#include "shim.h"

namespace pvt::cuda {

inline void check_cuda(cudaError_t error, const char* op) {
  check(error == cudaSuccess, op, ": CUDA error: ", cudaGetErrorString(error));
}

// The device of a tensor, current as long as this lives, and its current stream.
class Device {
 public:
  Device(const char* op, const Tensor& tensor)
      : op_(op), index_(tensor.get_device()), guard_(index_) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  const char* op() const { return op_; }
  int index() const { return index_; }
  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  // Bytes of shared memory that a block may have.
  int shared_limit() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }
  // 80 for compute capability 8.0.
  int capability() const {
    return 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
           attribute(cudaDevAttrComputeCapabilityMinor);
  }
  // Whether it has the instructions of our kernels, mma of bfloat16 and cp.async, and a driver that
  // is new enough for the CUDA runtime in this library; ATen may do with an older one.
  bool can_run_kernels() const {
    int major = 0;
    const cudaError_t error =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_);
    return error == cudaSuccess && major >= 8;
  }

 private:
  int attribute(cudaDeviceAttr attribute) const {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, attribute, index_), op_);
    return value;
  }

  const char* op_;
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Whether kernels may be launched while others end. PVT_PDL=0 in the environment says no, and
// drivers older than 12.3 cannot record it in a graph.
inline bool may_launch_early(const Device& device) {
  static const std::string wanted = [] {
    const char* const value = std::getenv("PVT_PDL");
    return value == nullptr || *value == '\0' ? "1" : value;
  }();
  check(wanted == "0" || wanted == "1", device.op(),
        ": expected PVT_PDL to be 0 or 1 in the environment, got '", wanted, "'");
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver), device.op());
  return wanted == "1" && driver >= 12030;
}

// Makes a kernel ready for `shared_bytes` on a device, at its first launch there. Not during the
// capture of a graph, therefore, unless it ran before.
// Returns whether it may be launched while the one before it ends.
template <class Kernel>
bool prepare(const Device& device, Kernel* kernel, int shared_bytes) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  cudaFuncAttributes attributes{};
  if (error == cudaSuccess)
    error = cudaFuncGetAttributes(&attributes, kernel);
  (void)cudaGetLastError();  // said here, and not again after the next launch
  const bool missing = error == cudaErrorInvalidDeviceFunction ||
                       error == cudaErrorNoKernelImageForDevice ||
                       error == cudaErrorUnsupportedPtxVersion;
  const int capability = device.capability();
  check(!missing, device.op(),
        ": the CUDA kernels of this pvt_ext were compiled for " PVT_CUDA_ARCHITECTURES
        ", not for this GPU, whose compute capability is ",
        capability / 10, ".", capability % 10,
        "; install it again with TORCH_CUDA_ARCH_LIST=", capability / 10, ".", capability % 10);
  check_cuda(error, device.op());
  return waits_for_kernel_before(attributes.ptxVersion) && may_launch_early(device);
}

// Runs kernel(args) in `blocks` blocks of `threads` threads. The kernel is a template argument, so
// that what was prepared is remembered for each. A kernel whose code waits for the one before it,
// begin_kernel(), is launched while that one ends.
//   most_shared_bytes: of any launch of the kernel, where they differ; the limit is set once
template <auto kKernel, class Args>
void launch(const Device& device, int64_t blocks, int threads, int shared_bytes, const Args& args,
            int most_shared_bytes) {
  static std::atomic<uint64_t> prepared{0}, early{0};  // a bit per device
  const uint64_t bit = uint64_t{1} << (device.index() % 64);
  bool is_early = (early.load(std::memory_order_relaxed) & bit) != 0;
  if (device.index() >= 64 || (prepared.load(std::memory_order_relaxed) & bit) == 0) {
    is_early = prepare(device, kKernel, most_shared_bytes);
    early.fetch_or(is_early ? bit : 0, std::memory_order_relaxed);
    prepared.fetch_or(bit, std::memory_order_relaxed);
  }
  check(blocks <= INT32_MAX, device.op(), ": expected fewer tokens, got ", blocks,
        " blocks of them");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = device.stream();
  config.attrs = &attribute, config.numAttrs = is_early ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kKernel, args), device.op());
}

template <auto kKernel, class Args>
void launch(const Device& device, int64_t blocks, int threads, int shared_bytes, const Args& args) {
  launch<kKernel>(device, blocks, threads, shared_bytes, args, shared_bytes);
}

}  // namespace pvt::cuda
