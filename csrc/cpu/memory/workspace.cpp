#include "cpu/memory/workspace.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "cpu/isa/kernels.h"

namespace vgg_fast::cpu {
namespace {

constexpr int64_t kLine = 64, kHugePage = 2 << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kMostKept = 0;  // a block for each call: an access past its end is caught
#else
constexpr int64_t kMostKept = int64_t{512} << 20;
#endif

// Lent and kept memory together is at most what was once lent at one time, plus a tenth: blocks
// that nobody needs any more don't add to a training step's peak. A forward pass uses blocks in
// turns, and may keep this much in any case: what VGG-11's needs at 224² and batch 16.
constexpr int64_t kAlwaysKept = int64_t{144} << 20;

struct Kept {
  // Only try_lock: a fork()ed child may inherit it locked by a thread that the child doesn't have.
  std::mutex mutex;
  std::vector<std::unique_ptr<Memory>> blocks;  // the least recently used one first
  int64_t bytes = 0;
  std::atomic<int64_t> lent = 0, most_lent = 0;
};

// Never destroyed: threads may still run kernels while the process ends.
Kept& kept() {
  static Kept* const instance = new Kept;
  return *instance;
}

void drop_oldest(Kept& pool) {
  pool.bytes -= pool.blocks.front()->bytes();
  pool.blocks.erase(pool.blocks.begin());
}

// Makes room for `bytes` more of kept or lent memory.
void make_room(Kept& pool, int64_t bytes) {
  const int64_t most = pool.most_lent + pool.most_lent / 10;
  const int64_t bound = std::max(kAlwaysKept, most) - pool.lent - bytes;
  while (!pool.blocks.empty() && pool.bytes > bound) drop_oldest(pool);
}

void lend(Kept& pool, int64_t bytes) {
  const int64_t lent = pool.lent += bytes;
  int64_t most = pool.most_lent;
  while (lent > most && !pool.most_lent.compare_exchange_weak(most, lent)) {
  }
}

bool on_huge_pages(int64_t bytes) { return bytes >= kHugePage && kMostKept > 0; }

char* allocate(int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, on_huge_pages(bytes) ? kHugePage : kLine, bytes) != 0) {
    throw OutOfMemory(bytes);
  }
  return static_cast<char*>(memory);
}

}  // namespace

Memory::Memory(int64_t bytes)
    : bytes_(round_up(std::max(bytes, kLine), kLine)), memory_(allocate(bytes_)) {
  // What doesn't fill a huge page stays on small ones.
  if (on_huge_pages(bytes_)) prefer_huge_pages(memory_, bytes_ / kHugePage * kHugePage);
}

void check_memory(int64_t bytes) {
  if (bytes < kHugePage) return;
  void* const memory = std::malloc(bytes);  // nothing is touched
  if (memory == nullptr) throw OutOfMemory(bytes);
  std::free(memory);
}

void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  if (bytes < kHugePage) return;
  static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));  // up to 64 KiB on Arm
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (end <= first) return;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

Memory::~Memory() { std::free(memory_); }

Workspace::Workspace(int64_t bytes) {
  bytes = std::max(bytes, kLine);
  const int64_t most = 4 * bytes;
  Kept& pool = kept();
  if (const std::unique_lock lock(pool.mutex, std::try_to_lock); lock) {
    auto best = pool.blocks.end();
    for (auto block = pool.blocks.begin(); block != pool.blocks.end(); ++block) {
      const int64_t size = (*block)->bytes();
      const bool fits = size >= bytes && size <= most;
      if (fits && (best == pool.blocks.end() || size < (*best)->bytes())) best = block;
    }
    if (best != pool.blocks.end()) {
      memory_ = std::move(*best);
      pool.bytes -= memory_->bytes();
      pool.blocks.erase(best);
      lend(pool, memory_->bytes());
      return;
    }
    make_room(pool, bytes);
  }
  memory_ = std::make_unique<Memory>(bytes);
  lend(pool, memory_->bytes());
}

Workspace::~Workspace() {
  const int64_t bytes = memory_->bytes();
  Kept& pool = kept();
  pool.lent -= bytes;
  const std::unique_lock lock(pool.mutex, std::try_to_lock);
  if (!lock || bytes > kMostKept) return;
  make_room(pool, bytes);
  while (pool.bytes + bytes > kMostKept) drop_oldest(pool);
  try {
    pool.blocks.push_back(std::move(memory_));
    pool.bytes += bytes;
  } catch (const std::bad_alloc&) {  // no room for the list: the block is freed
  }
}

int64_t release_workspaces() {
  Kept& pool = kept();
  const std::unique_lock lock(pool.mutex, std::try_to_lock);
  if (!lock) return 0;
  const int64_t bytes = pool.bytes;
  pool.blocks.clear();
  pool.bytes = 0;
  pool.most_lent = pool.lent.load();
  return bytes;
}

}  // namespace vgg_fast::cpu
