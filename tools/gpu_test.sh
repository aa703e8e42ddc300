#!/usr/bin/env bash
# The tests of tests/gpu on this machine's GPU, and the smallest of them under compute-sanitizer where there is one.
#   tools/gpu_test.sh PYTHON     a Python with a CUDA build of torch, and pytest
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

"$python" -m pytest -q -m "slow or not slow" tests/gpu

if ! command -v compute-sanitizer > /dev/null; then
  echo "!!!! SKIPPED: no compute-sanitizer, so memory accesses and races were NOT checked on the GPU !!!!"
  exit 0
fi
export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # each tensor an allocation of its own, whose end is seen
for tool in memcheck racecheck synccheck; do
  echo "== compute-sanitizer $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
    "$python" -m pytest -q -x tests/gpu/test_gpu_ops.py -k "without_variance or large_scores or resize"
done
