// The frame of a convolution that packs its weight: pack, or take the kept copy, then share the
// pieces of work out among the threads.

#pragma once

#include <optional>

#include "cpu/isa/kernels.h"
#include "cpu/memory/kept_weights.h"
#include "cpu/memory/workspace.h"
#include "cpu/plan/threads.h"

namespace vgg_fast::cpu {

struct PackedSize {
  int64_t blocks = 0;  // of output channels, which threads pack independently
  int64_t bytes = 0;   // of all
};

// Whether a copy of the transformed weight is worth its memory between calls. Not in a backward
// pass through large images, nor in the forward pass before it: there memory is what people lack,
// and the transform is a small part of the time, 6 % at 2,048 pixels and less above.
inline bool is_worth_keeping(const Convolution& task, bool for_dgrad) {
  constexpr int64_t kMostPixels = 2048;
  const bool has_gradient = for_dgrad || task.destination.mask != nullptr;
  return !has_gradient ||
         task.source.images * task.source.height * task.source.width <= kMostPixels;
}

// `kernel` is any of the kernel tables with pack_weight, convolve_workspace and convolve. A thread
// takes `grain` pieces at a time. Where there is a mask, one byte a piece, only the pieces that it
// marks are computed. `pieces_pack`: no copy is made of a weight that isn't kept, since the pieces
// transform it as they go.
template <class Kernel>
void convolve_pieces(const Kernel& kernel, Convolution task, const WeightForm& form,
                     const PackedSize& packed_size, int64_t pieces, int64_t grain = 1,
                     const uint8_t* piece_mask = nullptr, bool pieces_pack = false) {
  const auto pack = [&](char* packed) {
    share(packed_size.blocks, 1, [&](int64_t, int64_t first, int64_t last) {
      kernel.pack_weight(form.weight, form.for_dgrad, first, last, packed);
    });
  };
  const auto kept =
      kept_weight(form, packed_size.bytes, is_worth_keeping(task, form.for_dgrad), pack);
  std::optional<Workspace> for_this_call;
  if (kept == nullptr && !pieces_pack) pack(for_this_call.emplace(packed_size.bytes).at(0));
  task.packed_weight = kept ? kept.get() : for_this_call ? for_this_call->at(0) : nullptr;
  const int64_t workspace_bytes = round_up(kernel.convolve_workspace(task), 64);
  Workspace workspace(threads_for(divide_up(pieces, grain)) * workspace_bytes);
  share(pieces, grain, [&](int64_t worker, int64_t first, int64_t last) {
    void* const memory = workspace.at(worker * workspace_bytes);
    if (piece_mask == nullptr) {
      kernel.convolve(task, first, last, memory);
      return;
    }
    for (int64_t piece = first; piece < last; ++piece) {
      if (piece_mask[piece]) kernel.convolve(task, piece, piece + 1, memory);
    }
  });
}

}  // namespace vgg_fast::cpu
