// What this build is: version, compiler, compiled CPU levels (see pvt_ops.h).
#include <string>

#include "cpu/cpu_level.h"
#include "pvt_ops.h"

namespace {

constexpr int64_t kOpsVersion = 5;

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::string build_info() {
  std::string levels;
  for (pvt::CpuLevel level : pvt::compiled_cpu_levels()) {
    levels += (levels.empty() ? "\"" : ", \"") + std::string(pvt::name(level)) + '"';
  }
  return "{\"version\": \"" PVT_VERSION "\", \"ops_version\": " + std::to_string(kOpsVersion) +
         ", \"compiler\": \"" + compiler() + "\", \"cpu_levels\": [" + levels +
         "], \"cuda_architectures\": [], \"torch\": \"" PVT_TORCH_VERSION "\"}";
}

}  // namespace

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
  static const std::string info = build_info();
  return info.c_str();
}

void pvt_register_ops(void) {}

}  // extern "C"
