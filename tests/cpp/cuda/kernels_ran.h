// Keeps a list of the kernels that ran, under their names in csrc/cuda/resources.txt, which lists
// those that are compiled. ctest compares both (kernels_ran.cmake): none reaches a GPU that did not
// run here first.
#pragma once

#include <cxxabi.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <typeinfo>

namespace pvt::cuda {

class KernelsRan {
 public:
  static KernelsRan& list() {
    static KernelsRan list;
    return list;
  }
  template <class Config>
  void add(const std::string& kernel) {
    char* const config = abi::__cxa_demangle(typeid(Config).name(), nullptr, nullptr, nullptr);
    names_.insert(kernel + "_kernel<" + config + " >");
    std::free(config);
  }
  // Written to the file that the environment names.
  ~KernelsRan() {
    if (const char* path = std::getenv("PVT_KERNELS_RAN")) {
      std::ofstream file(path);
      for (const std::string& name : names_)
        file << name << "\n";
    }
  }

 private:
  std::set<std::string> names_;
};

}  // namespace pvt::cuda
