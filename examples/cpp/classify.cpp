// Runs a fused network without Python, and prints a line of logits for each image:
//
//   classify NETWORK IMAGES DEVICE LIBRARY...
//
//   NETWORK   network.pt, saved by torch.jit.save, or network.pt2, packaged by AOTInductor
//   IMAGES    a tensor (N, C, H, W), saved by torch.save
//   DEVICE    cpu or cuda: the one that the network was saved for
//   LIBRARY   vgg_fast/_C.abi3.so, and for a GPU vgg_fast/_C_cuda.abi3.so behind it

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Loading a library registers its operators; it stays loaded as long as the program runs.
void load_operators(const std::string& library) {
  if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr)
    throw std::runtime_error("the operator library doesn't load: " + std::string(dlerror()));
}

at::Tensor load_tensor(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("can't read " + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::jit::pickle_load(bytes).toTensor();
}

at::Tensor run(const std::string& network, const at::Tensor& images) {
  if (network.ends_with(".pt2")) {
    torch::inductor::AOTIModelPackageLoader package(network);
    return package.run({images}).at(0);
  }
  torch::jit::Module module = torch::jit::load(network, images.device());
  module.eval();
  return module.forward({images}).toTensor();
}

void print_rows(const at::Tensor& logits) {
  const at::Tensor rows = logits.to(at::kCPU, at::kFloat).contiguous();
  for (int64_t n = 0; n < rows.size(0); ++n)
    for (int64_t k = 0; k < rows.size(1); ++k)
      std::printf("%.9g%c", rows.data_ptr<float>()[n * rows.size(1) + k],
                  k + 1 < rows.size(1) ? ' ' : '\n');
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 5) {
    std::fprintf(stderr, "usage: %s NETWORK IMAGES cpu|cuda LIBRARY...\n", arguments[0]);
    return 2;
  }
  for (int i = 4; i < count; ++i) load_operators(arguments[i]);
  const c10::InferenceMode inference;
  print_rows(run(arguments[1], load_tensor(arguments[2]).to(at::Device(arguments[3]))));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "classify: %s\n", error.what());
  return 1;
}
