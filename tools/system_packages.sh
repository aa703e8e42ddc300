#!/bin/sh
# Checks for what the build needs of the system, by trying it. As root on Debian or Ubuntu it installs
# what is missing; otherwise it prints the line to type. SKIP_SYSTEM_PACKAGES=1 skips the check.
set -eu
[ "${SKIP_SYSTEM_PACKAGES:-0}" = 0 ] || exit 0

python=${PYTHON:-python3}
missing=""
need() {  # need PACKAGE COMMAND...: the package is missing if the command fails
  package=$1
  shift
  "$@" >/dev/null 2>&1 || missing="$missing $package"
}
header() {  # header NAME: the C++ compiler finds it
  printf '#include <cstdio>\n#include <%s>\n' "$1" | c++ -std=c++17 -E -x c++ -
}

need g++ c++ --version
need cmake cmake --version
need ninja-build ninja --version
need python3-venv "$python" -c "import ensurepip, venv"
need python3-dev "$python" -c "import os, sysconfig; os.stat(sysconfig.get_path('include') + '/Python.h')"
need libjpeg-dev header jpeglib.h
need libpng-dev header png.h
need libcli11-dev header CLI/CLI.hpp
need nlohmann-json3-dev header nlohmann/json.hpp
need doctest-dev header doctest/doctest.h
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing:$missing"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
  echo "Missing (names of Debian and Ubuntu packages):$missing" >&2
  echo "  sudo apt-get install$missing" >&2
  echo "or SKIP_SYSTEM_PACKAGES=1 if you know better." >&2
  exit 1
fi
