// Instead of cuda_graph.cpp where there is no CUDA build of LibTorch or no CUDA toolkit.
#include <pvt_ext/errors.h>

#include "recorded_network.h"

namespace pvt {

Recorder cuda_graph_recorder() {
  throw DeviceError(
      "CUDA graphs: this runtime was built without CUDA (CMake's PVT_WITH_CUDA, which needs a CUDA "
      "build of LibTorch and a CUDA toolkit)");
}

}  // namespace pvt
