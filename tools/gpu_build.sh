#!/usr/bin/env bash
# The package with CUDA kernels in a Python of this machine, if it does not have them yet or has those of
# older sources.
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
kernels=$("$python" -c "
import pathlib, pvt_ext
assert pvt_ext.build_info()['cuda_architectures']
print(pathlib.Path(pvt_ext.__file__).parent / 'lib/libpvt_ops_cuda.so')" 2> /dev/null) || kernels=""
if [ -z "$kernels" ] || [ -n "$(find csrc setup.py -newer "$kernels" -print -quit)" ]; then
  echo "== building the CUDA kernels, for this GPU alone"
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$arch} PVT_WITH_CUDA=1 \
    "$python" -m pip install --quiet --no-build-isolation --no-deps --editable .
fi
