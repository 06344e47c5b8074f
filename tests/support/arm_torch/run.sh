#!/bin/sh
# The operator library for 64-bit Arm, linked against torch's own library for it, and run under
# qemu-user in a C++ program: run.sh PYTHON FOLDER. Downloads 300 MB into FOLDER. It shows that the
# package's library builds, loads and computes there; of Python's part it shows nothing.
set -eu
python=$1 folder=$2
root=$(cd "$(dirname "$0")/../../.." && pwd)
compiler=${ARM_CXX:-aarch64-linux-gnu-g++}
version=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')
mkdir -p "$folder/objects"
folder=$(cd "$folder" && pwd)
torch=$folder/site/torch libraries=$folder/site/torch/lib:$folder/site/nvidia/cu13/lib

# torch's library wants CUDA's runtime to load, not to compute.
platforms=$(for glibc in 17 24 25 26 27 28 31 34; do echo "--platform manylinux_2_${glibc}_aarch64"; done)
[ -d "$torch" ] || "$python" -m pip install --quiet --no-deps --target "$folder/site" $platforms \
  --platform manylinux2014_aarch64 --only-binary=:all: \
  "torch==$version" "nvidia-cuda-runtime>=13,<14" "nvidia-cuda-cupti>=13,<14"

include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
flags="-std=c++20 -fvisibility=hidden -Wall -Wextra -Werror -O3 -g0 -fPIC
  -include $root/csrc/oldest_glibc.h -I$root/csrc
  -isystem $torch/include -isystem $torch/include/torch/csrc/api/include -isystem $include
  -DTORCH_TARGET_VERSION=0x020b000000000000 -DTORCH_EXTENSION_NAME=_C"
cd "$root"
export compiler flags folder
{ echo csrc/library.cpp; find csrc/cpu -name '*.cpp'; } | xargs -P "$(nproc)" -n 1 sh -c \
  '"$compiler" $flags -c "$0" -o "$folder/objects/$(echo "$0" | tr / _).o"'
"$compiler" -shared "$folder"/objects/*.o -o "$folder/_C.so" -L"$torch/lib" -ltorch_cpu -lc10 \
  -Wl,--allow-shlib-undefined
"$compiler" -std=c++20 -O1 -w tests/support/arm_torch/check.cpp -o "$folder/check" \
  -I"$torch/include" -L"$torch/lib" -ltorch_cpu -lc10 -ldl -Wl,--allow-shlib-undefined

# oneDNN asks the system which processor this is; qemu would show it the host's.
system=$folder/system
mkdir -p "$system/proc" "$system/sys/devices/system/cpu/cpu0/regs/identification"
ln -sfn /usr/aarch64-linux-gnu/lib "$system/lib"
echo 0x00000000413fd0c1 > "$system/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
printf 'processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n' \
  > "$system/proc/cpuinfo"
qemu-aarch64 -L "$system" -E ATEN_CPU_CAPABILITY=default -E OMP_NUM_THREADS=1 \
  -E LD_LIBRARY_PATH="$libraries" "$folder/check" "$folder/_C.so"
