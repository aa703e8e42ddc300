#!/bin/sh
# Checks for the system packages that the build needs. As root on Debian or Ubuntu it installs what is
# missing; otherwise it prints the line to type.
set -eu

packages="g++ cmake ninja-build python3-dev python3-venv libjpeg-dev libpng-dev libcli11-dev nlohmann-json3-dev doctest-dev"

if ! command -v dpkg-query >/dev/null; then
  echo "This is not Debian or Ubuntu: make sure of a C++20 compiler, CMake >= 3.18, ninja, and the headers of" >&2
  echo "libjpeg-turbo, libpng, CLI11, nlohmann-json and doctest." >&2
  exit 0
fi

missing=""
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  echo "installing:$missing"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
  echo "Missing system packages; run:" >&2
  echo "  sudo apt-get install$missing" >&2
  exit 1
fi
