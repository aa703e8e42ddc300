// Says what the CUDA library has kernels for, when it is loaded.
#include "library.h"

namespace {

struct Loaded {
  Loaded() { pvt::set_cuda_architectures(PVT_CUDA_ARCHITECTURES); }
} loaded;

}  // namespace
