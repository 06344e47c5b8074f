// torch's switch for the arithmetic of fp32 convolutions on a CPU.

#pragma once

#include "cpu/plan/plan.h"

namespace vgg_fast::cpu {

// What torch.backends.mkldnn.conv.fp32_precision says now, or the switches above it
// (torch.backends.mkldnn.fp32_precision, torch.backends.fp32_precision) where it says nothing.
Precision allowed_precision();

}  // namespace vgg_fast::cpu
