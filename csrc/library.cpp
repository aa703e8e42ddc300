// What this build is: version, compiler, compiled CPU levels (see pvt_ops.h).
#include <string>

#include "cpu/cpu_level.h"
#include "library.h"
#include "pvt_ops.h"

namespace {

constexpr int64_t kOpsVersion = 6;

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

const char* cuda_architectures = nullptr;  // of the CUDA library, once it is loaded

// "8.0;9.0a", or with commas, as "8.0", "9.0a"
std::string quoted(std::string list) {
  for (size_t at = list.find_first_of(";,"); at != std::string::npos;
       at = list.find_first_of(";,", at + 4)) {
    list.replace(at, 1, "\", \"");
  }
  return list.empty() ? list : '"' + list + '"';
}

std::string build_info(const std::string& architectures) {
  std::string levels;
  for (pvt::CpuLevel level : pvt::compiled_cpu_levels()) {
    levels += (levels.empty() ? "\"" : ", \"") + std::string(pvt::name(level)) + '"';
  }
  return "{\"version\": \"" PVT_VERSION "\", \"ops_version\": " + std::to_string(kOpsVersion) +
         ", \"compiler\": \"" + compiler() + "\", \"cpu_levels\": [" + levels +
         "], \"cuda_architectures\": [" + quoted(architectures) +
         "], \"torch\": \"" PVT_TORCH_VERSION "\"}";
}

}  // namespace

void pvt::set_cuda_architectures(const char* architectures) {
  cuda_architectures = architectures;
}

extern "C" {

const char* pvt_version(void) {
  return PVT_VERSION;
}

int64_t pvt_ops_version(void) {
  return kOpsVersion;
}

const char* pvt_cpu_level(void) {
  return pvt::name(pvt::cpu_level());
}

const char* pvt_build_info(void) {
  if (cuda_architectures != nullptr) {
    static const std::string with_cuda = build_info(cuda_architectures);
    return with_cuda.c_str();
  }
  static const std::string without_cuda = build_info("");
  return without_cuda.c_str();
}

void pvt_register_ops(void) {}

}  // extern "C"
