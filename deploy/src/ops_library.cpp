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
constexpr char kCudaFileName[] = "libpvt_ops_cuda.so";
constexpr char kAnyOperator[] = "pvt::resize";
constexpr char kAnyCudaOperator[] = "pvt::mlp_block_";
constexpr char kVersionFunction[] = "pvt_ops_version";

// A handle that gives the functions of the operator library, if one was loaded by whatever means
// (linked, preloaded, imported) and under whatever name, else nullptr. A second copy would register
// every operator twice, which ends the program.
void* find_loaded() {
  std::vector<std::string> names;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* list) {
        static_cast<std::vector<std::string>*>(list)->emplace_back(info->dlpi_name);
        return 0;
      },
      &names);
  for (const std::string& name : names) {
    // The program itself has no name. What cannot be opened again is no file (the kernel's vDSO).
    void* handle = dlopen(name.empty() ? nullptr : name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) {
      continue;
    }
    if (dlsym(handle, kVersionFunction) != nullptr) {
      return handle;
    }
    dlclose(handle);
  }
  return nullptr;
}

std::string file_of(const void* address) {
  Dl_info info{};
  return address != nullptr && dladdr(address, &info) != 0 ? info.dli_fname : "";
}

// Beside the library that holds this function.
std::string path_beside_runtime() {
  const fs::path runtime = file_of(reinterpret_cast<const void*>(&find_loaded));
  return (runtime.parent_path() / kFileName).string();
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

// `path` can only be the library that is in use.
void require_same(const std::string& path, void* handle) {
  // Tells files apart by what they are, not by their names. It would wait for a pipe's other end.
  std::error_code ignored;
  void* other = fs::is_regular_file(path, ignored)
                    ? dlopen(as_path(path).c_str(), RTLD_LAZY | RTLD_NOLOAD)
                    : nullptr;
  void* version = dlsym(handle, kVersionFunction);
  const bool same = other != nullptr && dlsym(other, kVersionFunction) == version;
  if (other != nullptr) {
    dlclose(other);
  }
  if (!same) {
    throw OpsError(path + ": cannot be loaded, this program has loaded " + file_of(version) +
                   " already");
  }
}

// The handle of the library, which is not among those loaded so far.
void* open_ops(const std::string& path) {
  std::string reason;
  const char* variable = std::getenv("PVT_OPS_LIB");
  const bool from_variable = path.empty() && variable != nullptr && *variable != '\0';
  if (!path.empty() || from_variable) {
    const std::string file = from_variable ? variable : path;
    const std::string source = from_variable ? "$PVT_OPS_LIB: " : "operator library: ";
    std::error_code ignored;
    if (fs::exists(file, ignored) && !fs::is_regular_file(file, ignored)) {
      throw OpsError(source + file + " is not a regular file");
    }
    if (void* handle = open(as_path(file), reason)) {
      return handle;
    }
    throw OpsError(source + reason);
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

OpsLibrary describe(void* handle) {
  OpsLibrary library;
  auto* version = symbol<const char*()>(handle, "pvt_version");
  library.version = version();
  library.ops_version = symbol<int64_t()>(handle, kVersionFunction)();
  library.cpu_level = symbol<const char*()>(handle, "pvt_cpu_level")();
  library.path = file_of(reinterpret_cast<const void*>(version));
  return library;
}

}  // namespace

OpsLibrary load_ops(const std::string& path) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  static void* in_use = nullptr;
  if (in_use == nullptr) {
    in_use = find_loaded();
  }
  if (in_use != nullptr) {
    if (!path.empty()) {
      require_same(path, in_use);
    }
    return describe(in_use);
  }
  if (missing_ops({kAnyOperator}).empty()) {
    throw OpsError(std::string("this program has registered ") + kAnyOperator +
                   " by other means than an operator library with the function " +
                   kVersionFunction + "; a second one cannot be loaded");
  }
  void* handle = open_ops(path);
  const OpsLibrary library = describe(handle);
  in_use = handle;
  return library;
}

void load_cuda_kernels() {
  const fs::path path = fs::path(load_ops().path).replace_filename(kCudaFileName);
  const auto schema = c10::Dispatcher::singleton().findSchema({kAnyCudaOperator, ""});
  const bool loaded = schema.has_value() && schema->hasKernelForDispatchKey(c10::DispatchKey::CUDA);
  std::string reason;
  if (!loaded && fs::exists(path) && open(path.string(), reason) == nullptr) {
    throw OpsError("CUDA kernels: " + reason);
  }
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
