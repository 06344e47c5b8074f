#!/bin/sh
# vgg_fast._bindings for 64-bit Arm, cross-compiled: bindings_arm.sh PYTHON FILE. Python's headers are
# those of this machine: with the stable ABI, they say the same on every 64-bit Linux.
set -eu
python=$1 file=$2
cd "$(dirname "$0")/.."
compiler=${ARM_CXX:-aarch64-linux-gnu-g++}
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
torch=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')
"$compiler" -shared -fPIC -std=c++20 -O3 -g0 -fvisibility=hidden -Wall -Wextra -Werror \
  -include csrc/oldest_glibc.h -Icsrc -isystem "$include" -DPy_LIMITED_API=0x030A0000 \
  "-DVGG_FAST_BUILD_COMPILER=\"$("$compiler" --version | head -n 1)\"" \
  '-DVGG_FAST_BUILD_FLAGS="-std=c++20 -O3"' "-DVGG_FAST_BUILD_TORCH=\"$torch\"" \
  '-DVGG_FAST_BUILD_TORCH_TARGET="2.11"' \
  csrc/bindings/introspection.cpp csrc/bindings/limited_api.cpp csrc/cpu/isa/features.cpp \
  csrc/cpu/plan/cost.cpp csrc/cpu/plan/plan.cpp csrc/cpu/plan/tiling.cpp -o "$file"
