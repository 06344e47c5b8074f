// What vgg_fast/_extension.py asks of this library, wherever it was installed: no torch is needed.

#define VGG_FAST_EXPORT extern "C" __attribute__((visibility("default")))

// The toolkit's version: "13.0".
VGG_FAST_EXPORT const char* vgg_fast_cuda_version() { return VGG_FAST_BUILD_CUDA; }

// The GPUs that it was built for, as in TORCH_CUDA_ARCH_LIST: "8.0;9.0a".
VGG_FAST_EXPORT const char* vgg_fast_cuda_architectures() {
  return VGG_FAST_BUILD_CUDA_ARCHITECTURES;
}
