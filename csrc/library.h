// What libpvt_ops_cuda.so tells libpvt_ops.so.
#pragma once

#include "pvt_ops.h"

namespace pvt {

// The CUDA library is loaded, with kernels for these, such as "8.0;8.6;8.9+PTX;9.0a".
PVT_API void set_cuda_architectures(const char* architectures);

}  // namespace pvt
