#!/usr/bin/env bash
# The tests of tests/gpu on this machine's GPU, the smallest of them under compute-sanitizer where there is one,
# and those of pvt_infer where it can be built. All of them, also after one has failed.
#   tools/gpu_test.sh PYTHON     a Python with a CUDA build of torch, and pytest
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
failed=""

# With pytest-xdist a kernel that breaks a process's CUDA context costs its own test alone.
parallel=()
! "$python" -c "import xdist" 2> /dev/null || parallel=(-n 4)
"$python" -m pytest -q --tb=short --durations=10 "${parallel[@]}" -m "slow or not slow" tests/gpu \
  --ignore tests/gpu/test_gpu_pvt_infer.py || failed+=" tests"

if ! command -v compute-sanitizer > /dev/null; then
  echo "!!!! SKIPPED: no compute-sanitizer, so memory accesses and races were NOT checked on the GPU !!!!"
else
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # each tensor an allocation of its own, whose end is seen
  # Our kernels alone: those that calculate what is expected are PyTorch's, and large.
  options=(--error-exitcode 1 --target-processes all)
  help=$(compute-sanitizer --help)
  for option in --kernel-name --kernel-regex --filter; do  # what it is called depends on the version
    if [[ $help == *"$option"* ]]; then
      options+=("$option" kns=3pvt4cuda)
      break
    fi
  done
  [[ $help != *--report-api-errors* ]] || options+=(--report-api-errors no)
  for tool in memcheck racecheck synccheck; do
    echo "== compute-sanitizer $tool"
    timeout 100 compute-sanitizer --tool "$tool" "${options[@]}" \
      "$python" -m pytest -q -x tests/gpu/test_gpu_ops.py -k "(without_variance and not 196) or large_scores or resize" || failed+=" $tool"
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
fi

# The C++ program, where CMake and what it is made of are.
echo "== building pvt_infer with CUDA graphs"
mkdir -p build
arch=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())")
[ "$arch" != 90 ] || arch=90a
torch_cmake=$("$python" -c "import torch; print(torch.utils.cmake_prefix_path)")
if { cmake -S . -B build/gpu -DPVT_WITH_CUDA=ON -DPVT_BUILD_TESTS=OFF -DCMAKE_PREFIX_PATH="$torch_cmake" \
       -DCMAKE_CUDA_ARCHITECTURES="$arch-real" &&
     cmake --build build/gpu --parallel "$(nproc)"; } > build/gpu.log 2>&1; then
  "$python" -m pytest -q --tb=short tests/gpu/test_gpu_pvt_infer.py || failed+=" pvt_infer"
else
  tail -n 3 build/gpu.log
  echo "!!!! SKIPPED: pvt_infer could not be built (build/gpu.log), so CUDA graphs in C++ are NOT tested !!!!"
fi

if [ -n "$failed" ]; then
  echo "FAILED:$failed"
  exit 1
fi
