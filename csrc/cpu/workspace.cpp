#include "workspace.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace vgg_fast::cpu {
namespace {

constexpr int64_t kLine = 64, kHugePage = 2 << 20;
constexpr int64_t kMostKept = int64_t{512} << 20;

struct Block {
  char* memory;
  int64_t bytes;
};

struct Kept {
  // Only ever tried: a fork()ed child may inherit it locked, by a thread that it hasn't.
  std::mutex mutex;
  std::vector<Block> blocks;
  int64_t bytes = 0;
};

// Never destroyed: threads may still run kernels while the process ends.
Kept& kept() {
  static Kept* const instance = new Kept;
  return *instance;
}

Block allocate(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kLine;
  const int64_t rounded = round_up(bytes, alignment);
  char* const memory = static_cast<char*>(std::aligned_alloc(alignment, rounded));
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  // A hint only: fewer pages, fewer misses of the address cache.
  if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  return {memory, rounded};
}

}  // namespace

Workspace::Workspace(int64_t bytes) {
  bytes = std::max(bytes, kLine);
  Kept& pool = kept();
  if (const std::unique_lock lock(pool.mutex, std::try_to_lock); lock) {
    const auto fits = [&](const Block& block) {
      return block.bytes >= bytes && block.bytes / 4 <= bytes;
    };
    auto best = pool.blocks.end();
    for (auto block = pool.blocks.begin(); block != pool.blocks.end(); ++block) {
      if (fits(*block) && (best == pool.blocks.end() || block->bytes < best->bytes)) best = block;
    }
    if (best != pool.blocks.end()) {
      memory_ = best->memory;
      bytes_ = best->bytes;
      pool.bytes -= best->bytes;
      pool.blocks.erase(best);
      return;
    }
  }
  const Block block = allocate(bytes);
  memory_ = block.memory;
  bytes_ = block.bytes;
}

Workspace::~Workspace() {
  Kept& pool = kept();
  if (const std::unique_lock lock(pool.mutex, std::try_to_lock); lock && bytes_ <= kMostKept) {
    while (pool.bytes + bytes_ > kMostKept) {  // the one that was used longest ago goes first
      pool.bytes -= pool.blocks.front().bytes;
      std::free(pool.blocks.front().memory);
      pool.blocks.erase(pool.blocks.begin());
    }
    pool.blocks.push_back({memory_, bytes_});
    pool.bytes += bytes_;
    return;
  }
  std::free(memory_);
}

int64_t release_workspaces() {
  Kept& pool = kept();
  const std::unique_lock lock(pool.mutex, std::try_to_lock);
  if (!lock) return 0;
  const int64_t bytes = pool.bytes;
  for (const Block& block : pool.blocks) std::free(block.memory);
  pool.blocks.clear();
  pool.bytes = 0;
  return bytes;
}

}  // namespace vgg_fast::cpu
