// Transformed weights that outlive a call, for layers whose weights don't change between calls:
// inference, frozen layers. Transforming a 512 → 512 weight takes longer than convolving a 14²
// image with it.
//
// A copy is made when the same weight comes for the second time with the same contents, so
// training, which changes them at each step, keeps none. Contents are compared by a 64-bit
// fingerprint, at every call: it reads a quarter of what the convolution reads, and notices every
// way of writing to a weight. (torch's version counter doesn't see weight.data.copy_() or a write
// through NumPy.)

#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {

// What a transformed weight was made of, and how.
struct WeightForm {
  Weight weight;
  Algorithm algorithm = Algorithm::kDirect;
  bool for_dgrad = false;
  Precision precision = Precision::kIeee;
  bool operator==(const WeightForm&) const = default;
};

// Shows that contents have changed. The same for any number of threads.
uint64_t fingerprint(const char* from, int64_t bytes);

// The kept copy of the weight in this form, if there is one with its present contents, or if one is
// to be kept from now on: `transform` then writes its `bytes`. Otherwise null. Of a weight that
// isn't frozen, no copy is kept, or looked for, if that isn't worth while.
std::shared_ptr<const char> kept_weight(const WeightForm& form, int64_t bytes,
                                        bool is_worth_keeping,
                                        const std::function<void(char*)>& transform);

// From here on the weight at this address is kept from its first call on, and no longer compared,
// until it has been thawed as often as it was frozen. Its memory must live that long.
void freeze_weight(const void* address);
void thaw_weight(const void* address);
int64_t frozen_weights();  // how many there are

// Frees the copies of the weight at this address, whose owner is being destroyed.
void forget_weight(const void* address);

// Bytes of the copies that are kept now.
int64_t kept_weights();

// Frees the least recently used copies until at most `bytes` are left, and returns how many bytes
// it freed.
int64_t trim_kept_weights(int64_t bytes);

}  // namespace vgg_fast::cpu
