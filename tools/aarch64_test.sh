#!/bin/sh
# The operators on another kind of processor: compiles them for 64-bit ARM and runs the tests of the
# CPU kernels in an emulator. On Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static
#
#   tools/aarch64_test.sh PYTHON    a Python with torch, of which the headers are taken
set -eu
cd "$(dirname "$0")/.."

torch=$("$1" -c 'import torch; print(torch.__path__[0])')/include
out=build/aarch64
rm -rf "$out"
mkdir -p "$out/include"
# Alone: what else lies beside doctest is this processor's.
doctest=$(echo '#include <doctest/doctest.h>' | c++ -M -x c++ - | grep -o '[^ ]*/doctest/doctest\.h')
ln -s "$(dirname "$doctest")" "$out/include/doctest"

compile() {  # compile DIRECTORY: the sources that standard input names, two at a time
  mkdir -p "$1"
  xargs -P 2 -I '{}' sh -c 'aarch64-linux-gnu-g++ -std=c++17 -O1 -ffp-contract=off -fvisibility=hidden \
    -Wall -Wextra -Werror -DTORCH_TARGET_VERSION=0x020a000000000000 -DPVT_VERSION=\"\" -DPVT_TORCH_VERSION=\"\" \
    -Icsrc -Itests/cpp -isystem "$2/include" -isystem "$3" -c "$0" -o "$1/$(echo "$0" | tr / _).o"' \
    '{}' "$1" "$out" "$torch"
}
sed -n 's:^[a-z].*\.cpp$:csrc/&:p' csrc/sources.txt | compile "$out/ops"
grep -l '"kernel_test.h"' tests/cpp/*.cpp | compile "$out/tests"
echo tests/cpp/main.cpp | compile "$out/tests"

aarch64-linux-gnu-g++ -static "$out"/tests/*.o "$out"/ops/csrc_cpu_cpu_level.cpp.o \
  "$out"/ops/csrc_cpu_gemm.cpp.o -o "$out/test_kernels"
qemu-aarch64-static "$out/test_kernels"
