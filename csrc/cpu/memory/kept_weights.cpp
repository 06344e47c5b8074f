#include "cpu/memory/kept_weights.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/memory/workspace.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {
namespace {

constexpr int64_t kPiece = 64 << 10;

// From the first element in memory to the end of the last, gaps included. Strides may be zero, or
// overlap: then it is less than the elements would take.
int64_t extent_of(const Weight& weight) {
  const int64_t last = (weight.outputs - 1) * weight.output_stride +
                       (weight.inputs - 1) * weight.input_stride + 2 * weight.row_stride +
                       2 * weight.column_stride;
  return (last + 1) * stored_size(weight.storage);
}

// A weight with gaps takes too long to compare for its few elements, and what lies in the gaps
// isn't part of it.
bool has_holes(const Weight& weight) {
  return extent_of(weight) > 9 * weight.outputs * weight.inputs * stored_size(weight.storage);
}

// A weight that was seen, and its transformed copy if it is kept.
struct Entry {
  WeightForm form;
  uint64_t fingerprint = 0;
  int64_t bytes = 0;
  std::shared_ptr<const char> copy;
};

constexpr size_t kMostEntries = 256;

struct Registry {
  // Only try_lock: a fork()ed child may inherit it locked by a thread that the child doesn't have.
  std::mutex mutex;
  std::vector<Entry> entries;  // the least recently used one first
  std::vector<const void*> frozen;
};

// Never destroyed: threads may still run kernels while the process ends.
Registry& registry() {
  static Registry* const instance = new Registry;
  return *instance;
}

// The entry, moved to the end; null if the weight wasn't seen.
Entry* find(Registry& seen, const WeightForm& form) {
  const auto entry = std::find_if(seen.entries.begin(), seen.entries.end(),
                                  [&](const Entry& e) { return e.form == form; });
  if (entry == seen.entries.end()) return nullptr;
  std::rotate(entry, entry + 1, seen.entries.end());
  return &seen.entries.back();
}

int64_t bytes_kept(const Registry& seen) {
  int64_t bytes = 0;
  for (const Entry& entry : seen.entries) bytes += entry.copy ? entry.bytes : 0;
  return bytes;
}

int64_t trim(Registry& seen, int64_t bytes) {
  const int64_t kept = bytes_kept(seen);
  int64_t freed = 0;
  for (Entry& entry : seen.entries) {
    if (kept - freed <= bytes) break;
    if (entry.copy) freed += entry.bytes;
    entry.copy.reset();
  }
  return freed;
}

void drop(Registry& seen, const void* address) {
  std::erase_if(seen.entries, [&](const Entry& e) { return e.form.weight.values == address; });
}

bool is_frozen(const Registry& seen, const void* address) {
  return std::find(seen.frozen.begin(), seen.frozen.end(), address) != seen.frozen.end();
}

// Whether the weight is frozen; and the copy, if it is kept already.
bool look_up_frozen(const WeightForm& form, std::shared_ptr<const char>& copy) {
  Registry& seen = registry();
  const std::unique_lock lock(seen.mutex, std::try_to_lock);
  if (!lock || !is_frozen(seen, form.weight.values)) return false;
  if (const Entry* entry = find(seen, form)) copy = entry->copy;
  return true;
}

// Records the contents of a weight. Returns the copy made from the same contents, if any;
// `unchanged` says whether they were the same at the last call.
std::shared_ptr<const char> look_up(const WeightForm& form, uint64_t contents, bool& unchanged) {
  Registry& seen = registry();
  const std::unique_lock lock(seen.mutex, std::try_to_lock);
  if (!lock) return nullptr;
  Entry* entry = find(seen, form);
  if (entry == nullptr) {
    if (seen.entries.size() == kMostEntries) seen.entries.erase(seen.entries.begin());
    seen.entries.push_back({form, contents, 0, nullptr});
    return nullptr;
  }
  unchanged = entry->fingerprint == contents;
  if (!unchanged) entry->copy.reset();
  entry->fingerprint = contents;
  return entry->copy;
}

void keep(const WeightForm& form, uint64_t contents, int64_t bytes, int64_t most,
          const std::shared_ptr<const char>& copy) {
  Registry& seen = registry();
  const std::unique_lock lock(seen.mutex, std::try_to_lock);
  if (!lock) return;
  Entry* entry = find(seen, form);
  if (entry == nullptr || entry->fingerprint != contents) return;
  entry->copy.reset();
  trim(seen, most - bytes);
  entry->copy = copy;
  entry->bytes = bytes;
}

std::shared_ptr<const char> new_copy(int64_t bytes, const std::function<void(char*)>& transform) {
  const auto memory = std::make_shared<Memory>(bytes);
  transform(memory->at(0));
  return {memory, memory->at(0)};
}

}  // namespace

uint64_t fingerprint(const char* from, int64_t bytes) {
  std::vector<uint64_t> pieces(divide_up(bytes, kPiece));
  parallel(int64_t(pieces.size()), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t start = i * kPiece;
      pieces[i] = kernels().fingerprint(from + start, std::min(kPiece, bytes - start), uint64_t(i));
    }
  });
  return kernels().fingerprint(reinterpret_cast<const char*>(pieces.data()),
                               int64_t(pieces.size() * sizeof(uint64_t)), uint64_t(bytes));
}

std::shared_ptr<const char> kept_weight(const WeightForm& form, int64_t bytes,
                                        bool is_worth_keeping,
                                        const std::function<void(char*)>& transform) {
  const int64_t most = settings().weight_cache;
  if (bytes > most || has_holes(form.weight)) return nullptr;
  std::shared_ptr<const char> frozen;
  if (look_up_frozen(form, frozen)) {
    if (frozen == nullptr) {
      frozen = new_copy(bytes, transform);
      bool unchanged = false;
      look_up(form, 0, unchanged);
      keep(form, 0, bytes, most, frozen);
    }
    return frozen;
  }
  if (!is_worth_keeping) return nullptr;
  const uint64_t contents =
      fingerprint(static_cast<const char*>(form.weight.values), extent_of(form.weight));
  bool unchanged = false;
  if (auto copy = look_up(form, contents, unchanged)) return copy;
  if (!unchanged) return nullptr;
  const auto copy = new_copy(bytes, transform);
  keep(form, contents, bytes, most, copy);
  return copy;
}

void forget_weight(const void* address) {
  Registry& seen = registry();
  const std::unique_lock lock(seen.mutex, std::try_to_lock);
  if (!lock) return;
  drop(seen, address);
}

void freeze_weight(const void* address) {
  Registry& seen = registry();
  const std::unique_lock lock(seen.mutex, std::try_to_lock);
  if (!lock) return;
  drop(seen, address);  // what it holds may be out of date
  seen.frozen.push_back(address);
}

void thaw_weight(const void* address) {
  Registry& seen = registry();
  std::unique_lock lock(seen.mutex, std::try_to_lock);
  // Unlike the others, this must not be skipped. A lock that is never released was inherited by a
  // fork()ed child; nobody can take it there, and so nobody finds a copy.
  for (int i = 0; !lock && i < 1000; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    (void)lock.try_lock();
  }
  if (!lock) return;
  const auto one = std::find(seen.frozen.begin(), seen.frozen.end(), address);
  if (one != seen.frozen.end()) seen.frozen.erase(one);
  if (!is_frozen(seen, address)) drop(seen, address);
}

int64_t frozen_weights() {
  Registry& seen = registry();
  const std::unique_lock lock(seen.mutex, std::try_to_lock);
  return lock ? int64_t(seen.frozen.size()) : 0;
}

int64_t kept_weights() {
  Registry& seen = registry();
  const std::unique_lock lock(seen.mutex, std::try_to_lock);
  return lock ? bytes_kept(seen) : 0;
}

int64_t trim_kept_weights(int64_t bytes) {
  Registry& seen = registry();
  const std::unique_lock lock(seen.mutex, std::try_to_lock);
  return lock ? trim(seen, bytes) : 0;
}

}  // namespace vgg_fast::cpu
