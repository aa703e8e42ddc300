#!/usr/bin/env bash
# The tests of tests/gpu on this machine's GPU, and the smallest of them under compute-sanitizer where there is one.
#   tools/gpu_test.sh PYTHON     a Python with a CUDA build of torch, and pytest
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

"$python" -c "
import sys, torch
if not torch.cuda.is_available():
    sys.exit('gpu-test: no GPU, or no CUDA build of torch: ' + torch.__version__)
print(torch.cuda.get_device_name(), 'compute capability %d.%d' % torch.cuda.get_device_capability(), 'torch', torch.__version__)"
if ! "$python" -c "import pvt_ext; assert pvt_ext.build_info()['cuda_architectures']" 2> /dev/null; then
  echo "== building the CUDA kernels, for this GPU alone"
  arch=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  [ "$arch" != 9.0 ] || arch=9.0a
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$arch} PVT_WITH_CUDA=1 \
    "$python" -m pip install --quiet --no-build-isolation --no-deps --editable .
fi
"$python" -m pytest -q -m "slow or not slow" tests/gpu

if ! command -v compute-sanitizer > /dev/null; then
  echo "!!!! SKIPPED: no compute-sanitizer, so memory accesses and races were NOT checked on the GPU !!!!"
  exit 0
fi
for tool in memcheck racecheck synccheck; do
  echo "== compute-sanitizer $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
    "$python" -m pytest -q -x tests/gpu/test_gpu_ops.py -k "without_variance or large_scores"
done
