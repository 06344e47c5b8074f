// Memory beside the tensors, and scratch memory that outlives a call. The kernel hands out new
// memory as zeroed pages, one fault each: for a 512 → 512 layer's 37 MB that takes as long as the
// convolution of a 14² image. So blocks are kept for the next call.

#pragma once

#include <cstdint>
#include <memory>

namespace vgg_fast::cpu {

// An uninitialised block, aligned to a cache line; on huge pages if it is large.
class Memory {
 public:
  explicit Memory(int64_t bytes);  // throws std::bad_alloc
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* at(int64_t offset) const { return memory_ + offset; }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_;
  char* memory_;
};

// One of the kept blocks where one fits; kept again when it goes.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);       // throws std::bad_alloc
  Workspace(int64_t bytes, int64_t most);  // as above; no kept block with more than `most` bytes
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* at(int64_t offset) const { return memory_->at(offset); }

 private:
  std::unique_ptr<Memory> memory_;
};

// Gives the kept blocks back to the system, and returns how many bytes they were.
int64_t release_workspaces();

}  // namespace vgg_fast::cpu
