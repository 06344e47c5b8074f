// Aligned blocks, and scratch memory that outlives a call. The operating system hands out new
// memory as zeroed pages, one fault each: for a 512 → 512 layer's 37 MB that takes as long as the
// convolution of a 14² image. So blocks are kept for the next call.

#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace vgg_fast::cpu {

// The system couldn't provide such a block.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes) : bytes_(bytes) {}
  int64_t bytes() const { return bytes_; }
  const char* what() const noexcept override { return "vgg_fast: not enough memory"; }

 private:
  int64_t bytes_;
};

// Throws OutOfMemory if the system has no block of this many bytes. To be called before PyTorch is
// asked for a large one: its own error would come with two screens of stack frames.
void check_memory(int64_t bytes);

// A hint to the system: with fewer pages there are fewer faults and TLB misses.
void prefer_huge_pages(void* memory, int64_t bytes);

// An uninitialised block, aligned to a cache line; on huge pages if it is large.
class Memory {
 public:
  explicit Memory(int64_t bytes);  // throws OutOfMemory
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* at(int64_t offset) const { return memory_ + offset; }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_;
  char* memory_;
};

// One of the kept blocks, if one fits, else a new one; kept again when it is destroyed.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);  // throws OutOfMemory
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* at(int64_t offset) const { return memory_->at(offset); }

 private:
  std::unique_ptr<Memory> memory_;
};

// Gives the kept blocks back to the system, and returns how many bytes that was.
int64_t release_workspaces();

}  // namespace vgg_fast::cpu
