// Finding and loading libpvt_ops.so, the operators that an exported model calls, and their kernels
// for a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <pvt_ext/decode.h>

namespace pvt {

struct OpsLibrary {
  std::string path;
  std::string version;      // of pvt_ext
  int64_t ops_version = 0;  // of the operators; a model needs this or less
  std::string cpu_level;    // the instruction set in use
};

// Loads the library once per process; later calls describe the one in use, whatever the name of its
// file. A program that links pvt_ext::ops has it loaded already; then, and in later calls, `path`
// is empty or that library (OpsError: operators cannot be registered twice). Otherwise: `path`, or
// if that is empty $PVT_OPS_LIB, or libpvt_ops.so beside the runtime library, or wherever the
// system's loader finds that name.
PVT_RUNTIME_API OpsLibrary load_ops(const std::string& path = "");

// Loads the CUDA kernels of the operators, libpvt_ops_cuda.so beside the library in use, if it is
// there and nobody has loaded any; without them the operators run through ATen on a GPU. Needs a
// CUDA build of LibTorch (OpsError). Model::load() does so for a CUDA device.
PVT_RUNTIME_API void load_cuda_kernels();

// Those of `names` ("pvt::resize") that no library has registered.
PVT_RUNTIME_API std::vector<std::string> missing_ops(const std::vector<std::string>& names);

}  // namespace pvt
