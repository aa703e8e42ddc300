#!/usr/bin/env bash
# The package with CUDA kernels in a Python of this machine, if it does not have them yet, and pvt_infer in build/gpu.
#   tools/gpu_build.sh PYTHON     a Python with a CUDA build of torch
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

"$python" -c "
import sys, torch
if not torch.cuda.is_available():
    sys.exit('no GPU, or no CUDA build of torch: ' + torch.__version__)
print(torch.cuda.get_device_name(), 'compute capability %d.%d' % torch.cuda.get_device_capability(), 'torch', torch.__version__)"
arch=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
[ "$arch" != 9.0 ] || arch=9.0a
if ! "$python" -c "import pvt_ext; assert pvt_ext.build_info()['cuda_architectures']" 2> /dev/null; then
  echo "== building the CUDA kernels, for this GPU alone"
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$arch} PVT_WITH_CUDA=1 \
    "$python" -m pip install --quiet --no-build-isolation --no-deps --editable .
fi

# The C++ program, where CMake and what it is made of are.
echo "== building pvt_infer with CUDA graphs"
mkdir -p build
torch_cmake=$("$python" -c "import torch; print(torch.utils.cmake_prefix_path)")
if ! { cmake -S . -B build/gpu -DPVT_WITH_CUDA=ON -DPVT_BUILD_TESTS=OFF -DCMAKE_PREFIX_PATH="$torch_cmake" \
         -DCMAKE_CUDA_ARCHITECTURES="${arch/./}-real" &&
       cmake --build build/gpu --parallel "$(nproc)"; } > build/gpu.log 2>&1; then
  tail -n 3 build/gpu.log
  echo "!!!! SKIPPED: pvt_infer could not be built (build/gpu.log), so CUDA graphs in C++ are NOT tested !!!!"
fi
