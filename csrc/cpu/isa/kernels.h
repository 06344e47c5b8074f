// The interface between the operators, which know tensors, and the kernels, which know pointers.
//
// Each instruction set compiles the same templates (kernels.inl) into one `Kernels` table. All maps
// are channels_last: [image][row][column][channel], and dense, except those that pooling reads.
// Arithmetic is in fp32, or in fp64 for fp64 maps. `Real` below stands for that type.

#pragma once

#include <cstdint>

#include "cpu/isa/instruction_set.h"
#include "kinds.h"

namespace vgg_fast::cpu {

inline int64_t stored_size(Storage storage) {
  switch (storage) {
    case Storage::kFloat64:
      return 8;
    case Storage::kFloat32:
      return 4;
    default:
      return 2;
  }
}

// What is computed with.
inline int64_t real_size(Storage storage) { return storage == Storage::kFloat64 ? 8 : 4; }

// What is done to a source's values as they are read: nothing, or the backward pass of a ReLU,
// leaky or not, or of the pooling behind it too. Those that end in Mask read the bits that a frozen
// weight's operators keep (vgg_fast/ops/frozen.py), and serve either ReLU; kBothMask adds the
// gradients of a map and of its pooling.
enum class Prologue {
  kNone,
  kReluGradient,
  kLeakyReluGradient,
  kPoolReluGradient,
  kPoolLeakyReluGradient,
  kReluMask,
  kPoolMask,
  kBothMask
};

constexpr bool undoes_pooling(Prologue prologue) {
  return prologue == Prologue::kPoolReluGradient || prologue == Prologue::kPoolLeakyReluGradient ||
         prologue == Prologue::kPoolMask;
}
constexpr bool reads_mask(Prologue prologue) { return prologue >= Prologue::kReluMask; }
constexpr bool is_leaky(Prologue prologue) {
  return prologue == Prologue::kLeakyReluGradient || prologue == Prologue::kPoolLeakyReluGradient;
}

// What the pixels are that a map's edge pixels have for neighbours, one pixel around it: zero, more
// of the same memory (the map is the middle of a larger one), or pixels of the map.
enum class Border { kZeros, kMemory, kReflect, kReplicate, kCircular };

// What a convolution reads: a map, or the gradient of the operator's output.
struct Source {
  Prologue prologue = Prologue::kNone;
  Border border = Border::kZeros;  // kZeros if there is a prologue
  Storage storage = Storage::kFloat32;
  const void* values = nullptr;     // the map, or the gradient of the operator's output
  const void* output = nullptr;     // the operator's output: its sign is the ReLU's mask
  const uint8_t* argmax = nullptr;  // undoes_pooling: which of the 4 pixels won
  const uint8_t *mask = nullptr, *windows = nullptr;        // reads_mask
  const void* pooled = nullptr;                             // kBothMask: the pooled map's gradient
  int64_t images = 0, height = 0, width = 0, channels = 0;  // of the full-resolution map
  // Between the values of one image, or row, and the next, in elements. Pixels are dense.
  int64_t image_stride = 0, row_stride = 0;
  double negative_slope = 0;  // is_leaky, reads_mask: of the ReLU whose gradient this is
};

// Bytes that hold a bit of each channel: those of a pixel in a mask.
inline int64_t mask_bytes(int64_t channels) { return (channels + 7) / 8; }

// What a convolution writes: a map, or its 2×2 maxima, or both.
struct Destination {
  bool has_relu = false;
  double negative_slope = 0;  // of the ReLU
  Storage storage = Storage::kFloat32;
  void *values = nullptr, *pooled = nullptr;
  uint8_t* argmax = nullptr;   // of the windows; null if no gradient will be asked for
  uint8_t* mask = nullptr;     // of the map, or of the maxima if the map isn't written; or null
  uint8_t* windows = nullptr;  // the argmax in bits, or null
  int64_t channels = 0;
};

// A weight (K, C, 3, 3) as the user keeps it; strides in elements.
struct Weight {
  Storage storage = Storage::kFloat32;
  const void* values = nullptr;
  int64_t outputs = 0, inputs = 0;
  int64_t output_stride = 0, input_stride = 0, row_stride = 0, column_stride = 0;
  bool operator==(const Weight&) const = default;
};

// The work is cut into tiles: some images × some rows × some columns of a full-resolution map.
struct Tiling {
  int64_t images = 0, rows = 0, columns = 0;                       // of one tile
  int64_t across_images = 0, across_rows = 0, across_columns = 0;  // tiles in each direction
  int64_t count() const { return across_images * across_rows * across_columns; }
  int64_t pixels() const { return images * rows * columns; }
};

// How a Winograd convolution, or one on AMX tiles, is cut into pieces of work.
struct Blocking {
  int64_t tiles = 0;    // Winograd: of m × m pixels, in one piece
  int64_t outputs = 0;  // output channels of one piece: a multiple of channel_block, or of 32
};

struct Convolution {
  Source source;
  Destination destination;
  const void* packed_weight = nullptr;  // Real, as pack_weight or Winograd's writes it
  // Winograd: what packed_weight is made of. Where that is null, `weight` is transformed on the
  // way, by each piece anew.
  Weight weight;
  bool for_dgrad = false;
  const void* packed_scale = nullptr;  // Real[padded(K)]
  const void* packed_bias = nullptr;   // Real[padded(K)]
  Tiling tiling;                       // Winograd: 1 image × m rows × m columns
  Blocking blocking;                   // Winograd, AMX
  // [range of outputs][tile], set to 1 where all outputs are so small that denormal numbers may
  // have mattered; by Winograd also where one isn't finite. The direct kernel must compute these
  // tiles.
  uint8_t* needs_direct = nullptr;
};

// Whether the direct algorithm multiplies with all taps' outputs at once (few_outputs.inl), because
// vectors of `lanes` outputs would be mostly padding.
inline bool has_few_outputs(int64_t inputs, int64_t outputs, int64_t lanes) {
  const auto padded = [lanes](int64_t columns) { return (columns + lanes - 1) / lanes * lanes; };
  return inputs >= 48 && outputs < lanes && 5 * padded(9 * outputs) <= 3 * 9 * padded(outputs);
}
inline bool has_few_outputs(const Convolution& convolution, int64_t lanes) {
  return has_few_outputs(convolution.source.channels, convolution.destination.channels, lanes);
}

struct WeightGradient {
  Source input, gradient;
  bool need_weight = true;
  // Direct: multiplies no zeros of the padding. Slower, for gradients that aren't finite.
  bool exclude_padding_taps = false;
  Tiling tiling;      // Winograd: 1 image × m rows × m columns
  int64_t chunk = 0;  // Winograd: tiles that are transformed before they are multiplied
};

// Terms of a Winograd product that are summed up before their sum is added to the others': shorter
// sums round less (at 256 channels, 64 terms a quarter less than 128), and that much of the right
// factor, 16 KB at most, stays in L1 while all rows are multiplied with it.
constexpr int64_t kTermsAtATime = 64;

// Channels of a block of a Winograd weight gradient.
constexpr int64_t kGradientBlockInputs = 48, kGradientBlockOutputs = 64;

// Bytes of a Winograd weight gradient's buffers, and what there is to share among threads: rows of
// its sums, or blocks, with sums of their own.
struct WinogradGradientSizes {
  int64_t inputs = 0, gradients = 0, sums = 0, rows = 0;
  int64_t block_sums = 0, blocks = 0;
};

struct Pooling {
  Storage storage = Storage::kFloat32;
  int64_t images = 0, height = 0, width = 0, channels = 0;  // of the full-resolution map
  // Of what is read, the map or the pooled map's gradient, in elements. Either its channels are
  // dense, or its rows are (dense_rows: NCHW).
  int64_t image_stride = 0, channel_stride = 1, row_stride = 0, column_stride = 0;
  bool dense_rows = false;
  int64_t elements = 0;  // from the first to the last
};

// Batch norm by the batch's statistics: activation(scale · (input - mean) + bias), of maps that are
// matrices, pixels × channels.
struct Norm {
  Storage storage = Storage::kFloat32;
  int64_t channels = 0;
  const void* input = nullptr;
  const void *mean = nullptr, *scale = nullptr, *bias = nullptr;  // Real[padded(C)]
  bool has_relu = false;
  double negative_slope = 0;  // of the ReLU
};

// Two maps that are compared, as matrices, pixels × channels.
struct MapPair {
  Storage storage = Storage::kFloat32;
  int64_t channels = 0;
  const void *input = nullptr, *target = nullptr;
};

// A sum no larger than this, where no factor is larger than 1, may have lost digits because
// denormal numbers were flushed: there are at most 2²⁰ terms, so a larger sum has lost less than
// 2⁻²⁶ of itself. Where factors are larger, the bound grows with the largest.
constexpr float kSmallSum = 0x1p-80f;

// The Winograd algorithm F(m×m, 3×3), for fp32 arithmetic (not for Storage::kFloat64).
struct WinogradKernels {
  int64_t (*weight_bytes)(int64_t inputs, int64_t outputs);
  // Packs the blocks [first, last) of output channels.
  int64_t output_block;
  void (*pack_weight)(const Weight&, bool for_dgrad, int64_t first, int64_t last, void* packed);

  int64_t (*convolve_workspace)(const Convolution&);
  void (*convolve)(const Convolution&, int64_t first_piece, int64_t last_piece, void* workspace);

  WinogradGradientSizes (*gradient_sizes)(const WeightGradient&);
  // Transforms the tiles [first, last) of the chunk that begins at the tile `chunk_first`. Whether
  // denormal numbers were flushed, here and in multiply_gradient.
  bool (*transform_gradient)(const WeightGradient&, int64_t chunk_first, int64_t first,
                             int64_t last, float* inputs, float* gradients, float* bias_sums);
  bool (*multiply_gradient)(const WeightGradient&, int64_t tiles, bool accumulate, int64_t first,
                            int64_t last, const float* inputs, const float* gradients, float* sums);
  // For the input channels [first, last). Returns the largest magnitude, or NaN if one of
  // the values isn't finite.
  float (*store_gradient)(const WeightGradient&, const Weight& destination, const float* sums,
                          int64_t first, int64_t last);
  // From the transformed tiles of all images, as one chunk, to the gradient, a block at a time.
  // Returns what store_gradient does.
  float (*gradient_blocks)(const WeightGradient&, const Weight& destination, int64_t first,
                           int64_t last, const float* inputs, const float* gradients, float* sums,
                           bool* flushed);
};

// Sizes of an AMX weight gradient's buffers in bytes.
struct AmxGradientSizes {
  int64_t inputs = 0, gradients = 0;  // of one tile of the tiling
  int64_t sums = 0;                   // of all
  int64_t blocks = 0;                 // of the sums, to share among threads
};

// Convolutions on Intel's AMX tiles, sums in fp32: the direct one of bfloat16 maps, or of fp32 maps
// that are rounded to it; and of fp32 maps Winograd's F(4×4).
struct AmxKernels {
  int64_t (*weight_bytes)(int64_t inputs, int64_t outputs);
  // Packs the blocks [first, last) of `output_block` output channels, for fprop or for dgrad.
  int64_t output_block;
  void (*pack_weight)(const Weight&, bool for_dgrad, int64_t first, int64_t last, void* packed);

  int64_t (*convolve_workspace)(const Convolution&);
  void (*convolve)(const Convolution&, int64_t first_piece, int64_t last_piece, void* workspace);

  AmxGradientSizes (*gradient_sizes)(const WeightGradient&);
  int64_t (*gradient_workspace)(const WeightGradient&);  // of one thread
  // Packs one tile's operands, and adds the gradient to bias_sums[padded(K)].
  void (*pack_gradient)(const WeightGradient&, int64_t tile, void* inputs, void* gradients,
                        float* bias_sums, void* workspace);
  // Adds the products of `tiles` packed tiles to the blocks [first, last) of the sums.
  void (*multiply_gradient)(const WeightGradient&, int64_t tiles, bool accumulate, int64_t first,
                            int64_t last, const void* inputs, const void* gradients, float* sums);
  // For the output channels [first, last). Returns what Winograd's does.
  float (*store_gradient)(const WeightGradient&, const Weight& destination, const float* sums,
                          int64_t first, int64_t last);

  // By six products, as exact as fp32, or by three; without the weight's gradient.
  WinogradKernels winograd4, winograd4_three_products;
};

// A map of at most this many pixels, over all images, is convolved with the weight in place.
constexpr int64_t kFewPixels = 16;

// Of the pixels [first, last); what belongs to a channel is Real[padded(C)].
struct NormKernels {
  // The mean, and the sum of squared distances from it.
  void (*statistics)(const Norm&, int64_t first, int64_t last, void* mean, void* squares);
  void (*forward)(const Norm&, int64_t first, int64_t last, void* output);
  // Of the gradient that the activation lets through: its sum, and that of its products with
  // (input - mean).
  void (*gradient_sums)(const Norm&, const void* gradient, int64_t first, int64_t last, void* sums,
                        void* products);
  // scale · (what is let through - offset - factor · (input - mean)).
  void (*backward)(const Norm&, const void* gradient, const void* offset, const void* factor,
                   int64_t first, int64_t last, void* grad_input);
};

// Of the pixels [first, last) of two maps, except fp64's; distances.inl says what of them.
struct DistanceKernels {
  double (*mean_sum)(const MapPair&, bool squared, int64_t first, int64_t last, void* slope);
  void (*sign_gradient)(const uint8_t* signs, float factor, int64_t channels, int64_t first,
                        int64_t last, float* gradient);
  void (*unit)(const MapPair&, const float* weight, int64_t first, int64_t last, float* distance,
               void* slope);
};

// A linear layer's matrices, dense: input (M, C), weight (K, C), output (M, K).
struct Linear {
  int64_t rows = 0, inputs = 0, outputs = 0;
  const float* weight = nullptr;
};

// With more rows the products take longer than passing over the weight.
constexpr int64_t kMostLinearRows = 64;
// Columns of the packed input that lie together, and of its gradient that are summed up together.
constexpr int64_t kLinearStretch = 256, kLinearColumns = 1024;
// Values that a row of sums takes at most: rows a power of two apart would share L1's lines.
constexpr int64_t kLinearPitch = kLinearColumns + 16;

// Of at most kMostLinearRows rows; linear.inl says what.
struct LinearKernels {
  // packed[stretch][M][kLinearStretch], of the stretches [first, last).
  void (*pack_input)(const Linear&, const float* input, int64_t first, int64_t last, float* packed);
  void (*forward)(const Linear&, const float* packed_input, const float* bias, int64_t first_output,
                  int64_t last_output, float* output);
  // At most kLinearColumns inputs, by way of sums[M][kLinearPitch].
  void (*grad_input)(const Linear&, const float* grad_output, int64_t first_input,
                     int64_t last_input, float* sums, float* grad_input);
  // From gradients[K][M].
  void (*grad_weight)(const Linear&, const float* gradients, const float* packed_input,
                      int64_t first_output, int64_t last_output, float* grad_weight);
};

struct Kernels {
  InstructionSet set;

  // Channels are padded to a multiple of this inside packed buffers, never in the user's tensors.
  int64_t (*channel_block)(Storage storage);
  // The rows of a weight gradient's sums are padded to a multiple of this.
  int64_t row_block;

  // Packs the blocks [first, last) of output channels, as fprop wants them, or as dgrad does:
  // rotated by 180° and with inputs and outputs exchanged.
  void (*pack_weight)(const Weight&, bool for_dgrad, int64_t first, int64_t last, void* packed);
  // Converts a value for each output channel, or repeats `otherwise` where there are none.
  void (*pack_per_channel)(Storage storage, const void* values, double otherwise, int64_t channels,
                           void* packed);

  // Bytes that one thread needs in addition to the tensors.
  int64_t (*convolve_workspace)(const Convolution&);
  void (*convolve)(const Convolution&, int64_t first_tile, int64_t last_tile, void* workspace);

  // The same for no more than kFewPixels, with a weight whose outputs each have dense terms:
  // patches Real[pixel][9 * C, padded to whole vectors] of the pixels [first, last); then the
  // products for the blocks [first, last) of `lanes` output channels.
  int64_t (*lanes)(Storage storage);
  void (*gather_patches)(const Convolution&, const Weight&, int64_t first, int64_t last,
                         void* patches);
  void (*multiply_patches)(const Convolution&, const Weight&, const void* patches, int64_t first,
                           int64_t last);

  // Adds to Real sums[padded(9 * C)][padded(K)] (if need_weight) and Real bias_sums[padded(K)].
  int64_t (*weight_gradient_workspace)(const WeightGradient&);
  void (*weight_gradient)(const WeightGradient&, int64_t first_tile, int64_t last_tile, void* sums,
                          void* bias_sums, void* workspace);
  // Adds up the parts' sums, in a fixed order, for the rows [first, last) of
  // sums[9 * C], and writes them as a weight. False if one of the values isn't finite.
  bool (*store_weight_gradient)(const Weight& destination, const void* sums, int64_t parts,
                                int64_t first, int64_t last);
  // Returns the largest magnitude.
  double (*store_bias_gradient)(Storage storage, const void* bias_sums, int64_t parts,
                                int64_t channels, void* destination);

  // Rows of the pooled map, counted over all images.
  void (*max_pool)(const Pooling&, const void* input, int64_t first_row, int64_t last_row,
                   void* output, uint8_t* argmax);
  // Pairs of rows of the full-resolution map, an odd last row too, counted over all images.
  void (*max_pool_backward)(const Pooling&, const void* grad_output, const uint8_t* argmax,
                            int64_t first_row, int64_t last_row, void* grad_input);

  // to[column][row] = from[row][column], as they are stored; strides in elements.
  void (*transpose)(Storage, const void* from, int64_t from_stride, int64_t rows, int64_t columns,
                    void* to, int64_t to_stride);

  // Of the source's values from `first` to `last`, before its prologue.
  float (*largest_magnitude)(const Source&, int64_t first, int64_t last);

  // A hash of bytes that distinguishes two weights of equal size and `seed`.
  uint64_t (*fingerprint)(const char* from, int64_t bytes, uint64_t seed);

  NormKernels norm;
  LinearKernels linear;
  DistanceKernels distance;
  WinogradKernels winograd2, winograd4;  // m = 2 and 4
};

extern const Kernels kGenericKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif
#if VGG_FAST_AMX
extern const AmxKernels kAmxKernels;
#endif

// The table of the instruction set in force.
const Kernels& kernels();

// The AMX kernels, or null where the instruction set in force has none.
const AmxKernels* amx_kernels();

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int64_t round_up(int64_t value, int64_t to) { return divide_up(value, to) * to; }

}  // namespace vgg_fast::cpu
