#include <pvt_ext/ops_library.h>

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>

#include <ATen/core/dispatch/Dispatcher.h>

#include <pvt_ext/errors.h>

namespace pvt {
namespace {

namespace fs = std::filesystem;

constexpr char kFileName[] = "libpvt_ops.so";

// The operator library among those loaded by whatever means (linked, preloaded, imported), or "".
// A second copy would register every operator twice, which ends the program.
std::string loaded_path() {
  std::string path;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        if (fs::path(info->dlpi_name).filename() != kFileName) {
          return 0;
        }
        *static_cast<std::string*>(found) = info->dlpi_name;
        return 1;
      },
      &path);
  return path;
}

// Beside the library that holds this function.
std::string path_beside_runtime() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&loaded_path), &info) == 0) {
    return "";
  }
  return (fs::path(info.dli_fname).parent_path() / kFileName).string();
}

// dlopen looks a bare name up in the system's folders; a file given by the user is that file.
std::string as_path(const std::string& file) {
  return file.find('/') == std::string::npos ? "./" + file : file;
}

void* open(const std::string& path, std::string& reason) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    reason = dlerror();
  }
  return handle;
}

// The handle of the library, loading it if need be.
void* open_ops(const std::string& path) {
  std::string reason;
  if (const std::string loaded = loaded_path(); !loaded.empty()) {
    std::error_code ignored;
    if (!path.empty() && !fs::equivalent(path, loaded, ignored)) {
      throw OpsError(path + ": cannot be loaded, this program has loaded " + loaded + " already");
    }
    if (void* handle = open(loaded, reason)) {
      return handle;
    }
    throw OpsError("operator library: " + reason);
  }

  const char* variable = std::getenv("PVT_OPS_LIB");
  const bool from_variable = path.empty() && variable != nullptr && *variable != '\0';
  if (!path.empty() || from_variable) {
    const std::string file = from_variable ? variable : path;
    if (void* handle = open(as_path(file), reason)) {
      return handle;
    }
    throw OpsError((from_variable ? "$PVT_OPS_LIB: " : "operator library: ") + reason);
  }

  const std::string beside = path_beside_runtime();
  if (fs::exists(beside)) {
    if (void* handle = open(beside, reason)) {
      return handle;
    }
    throw OpsError("operator library: " + reason);
  }
  if (void* handle = open(kFileName, reason)) {
    return handle;
  }
  throw OpsError(std::string("no operator library: ") + kFileName + " is neither at " + beside +
                 " nor on the loader's path; name it with --ops-lib FILE or PVT_OPS_LIB=FILE");
}

template <class Function>
Function* symbol(void* handle, const char* name) {
  void* address = dlsym(handle, name);
  if (address == nullptr) {
    throw OpsError(std::string("not the operator library of pvt_ext: the file that was loaded "
                               "has no function ") +
                   name);
  }
  return reinterpret_cast<Function*>(address);
}

}  // namespace

OpsLibrary load_ops(const std::string& path) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  void* handle = open_ops(path);
  OpsLibrary library;
  auto* version = symbol<const char*()>(handle, "pvt_version");
  library.version = version();
  library.ops_version = symbol<int64_t()>(handle, "pvt_ops_version")();
  library.cpu_level = symbol<const char*()>(handle, "pvt_cpu_level")();
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(version), &info) != 0) {
    library.path = info.dli_fname;
  }
  return library;
}

std::vector<std::string> missing_ops(const std::vector<std::string>& names) {
  std::vector<std::string> missing;
  for (const std::string& name : names) {
    if (!c10::Dispatcher::singleton().findSchema({name, ""}).has_value()) {
      missing.push_back(name);
    }
  }
  return missing;
}

}  // namespace pvt
