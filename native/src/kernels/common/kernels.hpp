// The kernels' one interface: plain structs and functions, one set for each instruction set.
//
// The files behind it are compiled for different instruction sets and linked into one library. Of an inline function or a
// template with external linkage the linker keeps one copy for all files, perhaps one of AVX-512. So these files define
// nothing of that kind, no std templates either, and what is inline here is inlined always (tests/native/test_linkage.py).
//
// Activations are NHWC with a border of zeros that nobody writes, so no kernel knows edges.
// Channels are padded to `kBlock` with zeros; padded outputs come out as zeros again.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/act.hpp"

namespace fracskip {

inline constexpr int kBlock = 16;  // channels to which everything is padded
inline constexpr int kImagePixel = 4;  // but levels of an image of up to so many, for convolutions of a stride

[[gnu::always_inline]] inline constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

enum class Residual : std::uint8_t { none, u8, f32 };
enum class Element : std::uint8_t { u8, bf16, f32 };

[[gnu::always_inline]] inline constexpr std::size_t size_of(Element element) {
  return element == Element::u8 ? 1 : element == Element::bf16 ? 2 : 4;
}

// What an epilogue gives. The values behind `bounded_levels` are in the levels' unit (`input` is 1) and fit an int32, each of
// them whatever the image, so that packing is all the clamp that they need.
enum class Result : std::uint8_t { levels, bounded_levels, bf16, f32 };

[[gnu::always_inline]] inline constexpr bool is_levels(Result result) {
  return result == Result::levels || result == Result::bounded_levels;
}

// One convolution of one image. Rows and pixels are strides in elements.
struct ConvArgs {
  const void* in;  // at output (0, 0)'s first tap, that is at pixel (-pad_top, -pad_left)
  std::ptrdiff_t in_row;
  int in_pixel;
  int in_channels;
  int kernel_h, kernel_w, stride_h, stride_w;
  const void* weights;  // packed for the kernel
  int run;              // conv_narrow: groups of channels whose products may be added up in 16 bits

  int out_h, out_w;
  int out_blocks;      // output channels / kBlock, rounded up
  const float* scale;  // integer accumulators only
  const float* bias;

  Residual residual_type;
  const void* residual;  // pixel (0, 0)
  std::ptrdiff_t residual_row;
  int residual_pixel;

  Element out_type;
  void* out;  // pixel (0, 0); may be the residual itself
  std::ptrdiff_t out_row;
  int out_pixel;
  float input;  // u8: what values are multiplied with first, 1 / step of the levels
  float top;    // u8: largest level. Smaller than 0 becomes 0.
  bool bounded;  // u8: see `Result`
  bool relu;    // bf16 and f32: whether to clamp at 0 and at `most`
  float most;
  void* sums;   // per channel, added to: uint32 for u8, float for f32; or null

  void* scratch;  // as many bytes as the kernel asked for, 64-byte aligned
};

using ConvFunction = void (*)(const ConvArgs&);

// The shortest run that conv_narrow takes: below, widening sums costs what adding them up in 16 bits saves.
inline constexpr int kLeastRun = 8;

// The recurrent or feedforward gate of one block; see gate.inl for the layout of the weights.
struct GateArgs {
  const float* pooled;  // (channels)
  int channels;
  int width;         // features
  int padded_width;  // rounded up to 8
  int options, padded_options;
  bool recurrent;
  const void* embed;        // (channels, padded_width)
  bool embed_bf16;          // in pairs of bfloat16 instead of float32; then padded_width is a multiple of 16
  const float* embed_bias;  // (padded_width)
  const float* budget;      // added to the features, (padded_width), or null
  const float* lstm;        // (2 width, 4 padded_width), then the bias (4 padded_width)
  const float* out;         // (width, padded_options), then the bias (padded_options)
  const float* block_bias;  // (padded_options), or null
  bool sensitivity;         // outputs are logarithms of sensitivities; else logits
  float multiplier;         // of cost: added to the scores, times:
  const float* cost_weights;  // (options)
  float* hidden;            // (padded_width), carried from block to block
  float* cell;
  float* work;              // (5 padded_width): the features, the LSTM's four parts
  float* scores;            // (padded_options); the least is chosen
};

using GateFunction = int (*)(const GateArgs&);  // gives the option

// Values are float32; their pixels lie side by side, channels padded with zeros to `kBlock`.
// What is done to each pixel of one: with `other` (add, mul) or by channel (affine, norm, mean), then `act`.
struct ValueArgs {
  const float* in;
  const float* other;
  float* out;  // may be `in` or `other`
  int pixels, channels;  // channels a multiple of kBlock
  int used;              // channels that are some; those beyond stay 0
  bool spread;           // `other` is one pixel, which goes with all
  Act act;
  const float *gain, *bias;  // (channels)
  float eps;
};

// Pixels into the form that a convolution takes: copied, or as levels clamp(rint(x * scale) + zero, 0, top), after a product
// by channel and `act`. Of levels q, x = (q - in_zero) * step.
struct StageArgs {
  const void* in;
  std::ptrdiff_t in_row, in_pixel;  // from one that is taken to the next
  const float* factor;  // (channels) of each pixel's values, or null
  Act act;
  int h, w, channels;
  int used;   // channels that are some; of levels' values those beyond become 0
  void* out;  // pixel (0, 0)
  std::ptrdiff_t out_row;
  int out_pixel;
  float step, in_zero;
  float scale, zero, top;
  int border;  // pixels around that are to be filled with `zero`
  std::uint16_t factor16, begin16;  // `relevel_short`: min(((q * factor16 >> 8) + begin16) >> shift16, top), of numbers below 2^16
  int shift16;
};

// Values to levels of an 8-bit stream, in whose unit they are: clamp(rint(act(x) + residual), 0, 255), of so many in a row.
struct RoundArgs {
  const float* in;
  Act act;
  Residual residual_type;
  const void* residual;
  std::uint8_t* out;  // may be the residual itself
  std::ptrdiff_t count;
};

// The mean of (q - zero) * step over pixels of levels.
struct LevelMeanArgs {
  const std::uint8_t* in;  // pixel (0, 0)
  std::ptrdiff_t in_row;
  float* out;
  int h, w, channels;
  int used;  // channels that are some; those beyond become 0
  float step;
  int zero;
};
// Of the sum of all levels, which is exact and below 2^31.
[[gnu::always_inline]] inline float level_mean(std::uint32_t sum, int pixels, int zero, float step) {
  return (static_cast<float>(static_cast<std::int32_t>(sum)) / static_cast<float>(pixels) - static_cast<float>(zero)) * step;
}

// Windows over each channel by itself. The input of a pool has no border: its windows end at the edge.
struct PoolArgs {
  const void* in;
  void* out;
  std::ptrdiff_t out_row;
  int in_h, in_w, out_h, out_w, channels;
  int kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
  bool largest, count_padding;
};
struct DepthwiseArgs {
  const void* in;  // at output (0, 0)'s first tap
  std::ptrdiff_t in_row;
  int in_pixel;
  int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  const float* weights;  // (kernel_h, kernel_w, channels), of integers too: their sums stay below 2^24
  const float *scale, *bias;
  int out_h, out_w, channels;
  void* out;
  std::ptrdiff_t out_row;
  int out_pixel;
  float top;   // u8: largest level
  bool relu;   // f32: whether to clamp at 0 and at `most`
  float most;
};

// Bytes to normalised values: (byte / 255 - mean) / std, of so many that lie side by side, channel after channel. The numbers of
// each channel are repeated in tables that hold `kBlock` more than there are channels.
struct PixelArgs {
  const std::uint8_t* in;
  float* out;
  std::ptrdiff_t count;
  int channels;
  const float *mean, *inverse;  // 1 / std
};

using PixelFunction = void (*)(const PixelArgs&);
using ValueFunction = void (*)(const ValueArgs&);
using StageFunction = void (*)(const StageArgs&);
using RoundFunction = void (*)(const RoundArgs&);
using LevelMeanFunction = void (*)(const LevelMeanArgs&);
using PoolFunction = void (*)(const PoolArgs&);
using DepthwiseFunction = void (*)(const DepthwiseArgs&);

struct ValueKernels {
  PixelFunction pixels;
  ValueFunction act, add, mul, affine, norm, mean;
  StageFunction copy, levels;                          // f32 to f32, f32 to u8
  StageFunction levels_of_image;                       // the same, of pixels side by side into `kImagePixel` bytes each (no act, no product)
  StageFunction copy_levels, relevel, values;          // u8 as they are (no act, no product), u8 to u8, u8 to f32
  StageFunction relevel_short;                         // u8 to u8 in 16-bit integers (no act, no product), or null
  RoundFunction round;
  LevelMeanFunction level_mean;
  PoolFunction pool, pool_levels;  // of f32; of u8, the largest alone
  DepthwiseFunction depthwise_f32, depthwise_u8_to_f32, depthwise_u8;
};

// An axis of a resize: output x is (sum of in[first[x] + t] * weights[x][t] over the taps + half) >> kResizeBits, as a byte.
struct ResizeTable {
  int outputs, taps, room;      // `room`: from one output's weights to the next's, zeros beyond the taps
  const std::int32_t* first;    // (outputs); every tap is an input
  const std::int16_t* weights;  // (outputs, room)
};
inline constexpr int kResizeBits = 14;
inline constexpr int kResizeRoom = 16;
inline constexpr int kResizeAhead = 16;  // bytes that columns may read beyond an image and the room for its taps

struct ResizeKernels {
  // Rows of so many bytes, and the columns of so many rows; `in` of the latter is followed by what they read ahead.
  void (*rows)(const std::uint8_t* in, std::uint8_t* out, int row_bytes, const ResizeTable& table);
  void (*columns)(const std::uint8_t* in, std::uint8_t* out, int rows, int width, int channels, const ResizeTable& table);
};

// What bounds kernels, in loops that do nothing else: multiply-accumulates of bytes, exact, of float32 and of bfloat16 values, in
// registers; each gives how many it did. And reading memory: whole `kPeakBytes`, aligned to 64.
inline constexpr std::size_t kPeakBytes = 512;
struct Peaks {
  std::int64_t (*int8)(std::int64_t rounds);
  std::int64_t (*fp32)(std::int64_t rounds);
  std::int64_t (*bf16)(std::int64_t rounds);  // null: this set has none
  void (*read)(const void* from, std::size_t bytes);
};

struct KernelSet {
  const char* name = nullptr;
  // Integer and float convolutions of any shape; those of 3x3, stride 1, by Winograd's algorithm;
  // integer ones, and those of bfloat16 values, by tiles, of a stride up to `kTileStride` (null: this
  // set has none).
  ConvFunction conv_int = nullptr;
  ConvFunction conv_narrow = nullptr;  // integers of few bits, faster (null: conv_int is as fast); see direct_avx2.cpp, direct_neon.cpp
  ConvFunction conv_float = nullptr;
  ConvFunction winograd_int = nullptr;
  ConvFunction winograd_float = nullptr;
  // Those of few bits by Winograd's algorithm in bytes (winograd_bytes.hpp): its tiles' outputs, and whether sums take 16 bits or 32.
  ConvFunction winograd_4x2_short = nullptr, winograd_4x2_wide = nullptr;
  ConvFunction winograd_2x2_short = nullptr, winograd_2x2_wide = nullptr;
  bool byte_pairs = false;  // whether their transformed levels are signed, and weights lie in pairs of channels
  ConvFunction tiles_int = nullptr;
  ConvFunction tiles_bf16 = nullptr;
  int int_group = 1;        // input channels whose weights conv_int wants side by side
  int int_multiple = 1;     // and of what number their count is to be a multiple
  bool int_offsets = false; // whether a block's weights begin with 128 times the sums of each output's, in int32
  bool int_widens = false;  // whether conv_int needs `widened_scratch`, and weights of 16 bits
  int winograd_group = 2;   // input channels whose weights winograd_int wants side by side
  // Of conv_narrow the same, which two channels' products it adds to one sum, and the largest level that it takes.
  int narrow_group = 4, narrow_apart = 1, narrow_top = 255;
  // Into bfloat16, without act and factor, levels as they are: it holds integers up to 256 exactly (null where `tiles_bf16` is).
  StageFunction u8_to_bf16 = nullptr, f32_to_bf16 = nullptr;
  GateFunction gate = nullptr;
  const ValueKernels* values = nullptr;
  const ResizeKernels* resize = nullptr;
  const Peaks* peaks = nullptr;  // null: nobody asks how near plain loops come
  // What a thread must do before its first and after its last kernel (null: nothing).
  void (*enter)() = nullptr;
  void (*leave)() = nullptr;
};

extern const KernelSet kScalarKernels;
extern const ValueKernels kScalarValues;
extern const ResizeKernels kScalarResize;
#if defined(FRACSKIP_ARM)
extern const ValueKernels kNeonValues;
extern const Peaks kNeonPeaks, kDotprodPeaks, kI8mmPeaks;
extern const KernelSet kNeonKernels;
extern const KernelSet kDotprodKernels;
extern const KernelSet kI8mmKernels;
#endif
#if defined(FRACSKIP_X86)
extern const ValueKernels kAvx2Values;
extern const ResizeKernels kAvx2Resize;
extern const ValueKernels kAvx512Values;
extern const Peaks kAvx2Peaks, kAvx512Peaks;
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#if defined(FRACSKIP_AMX)
extern const KernelSet kAmxKernels;
extern const Peaks kAmxPeaks;
#endif
#endif

// Winograd F(4x4, 3x3): 36 products for 16 outputs.
inline constexpr int kTile = 4, kTileIn = 6, kTileArea = 36;
inline constexpr int kTileGroup = 8;  // tiles in flight
inline constexpr int kTilePad = 64;   // bytes between positions: else they share cache sets

[[gnu::always_inline]] inline std::size_t winograd_scratch(int in_channels, std::size_t element) {
  const std::size_t channels = static_cast<std::size_t>(round_up(in_channels, kBlock));
  return kTileArea * (kTileGroup * (channels * element + kBlock * sizeof(std::int32_t)) + 2 * kTilePad);
}

// What an integer convolution that widens its input to 16 bits needs.
[[gnu::always_inline]] inline std::size_t widened_scratch(const ConvArgs& a) {
  const auto rows = static_cast<std::size_t>((a.out_h - 1) * a.stride_h + a.kernel_h);
  const auto columns = static_cast<std::size_t>((a.out_w - 1) * a.stride_w + a.kernel_w);
  return rows * columns * static_cast<std::size_t>(round_up(a.in_channels, kBlock)) * sizeof(std::int16_t);
}

// Convolutions by tiles of 16 rows of 64 bytes; see tiles_amx.cpp.
inline constexpr int kTileStride = 2;
inline constexpr int kTileBytes = 16 * 64;
inline constexpr int kTileSums = 4;  // tiles that are summed up at a time

// A tile's row is one output pixel's taps, in chunks of 64 bytes; or, of up to 16 channels of levels, four
// pixels that lie side by side.
[[gnu::always_inline]] inline constexpr bool tile_quads(Element element, int in_channels, int stride_h, int stride_w) {
  return element == Element::u8 && in_channels <= kBlock && stride_h == 1 && stride_w == 1;
}
[[gnu::always_inline]] inline constexpr int tile_chunks(Element element, int kernel_w, int in_pixel) {
  return round_up(kernel_w * in_pixel * static_cast<int>(size_of(element)), 64) / 64;
}
// How many fours of input pixels four output pixels reach, and which of the four reach the last ones.
[[gnu::always_inline]] inline constexpr int tile_fours(int kernel_w) { return (kernel_w + 2) / 4 + 1; }
[[gnu::always_inline]] inline constexpr bool tile_reaches(int kernel_w, int pixel, int four) { return pixel + kernel_w - 1 >= 4 * four; }

// The last tile reads on past the image, by up to 15 rows and a vector.
[[gnu::always_inline]] inline constexpr int tile_read_ahead(int pixel) { return (15 * kTileStride + 1) * pixel + 20 * 64; }
// Sums of two groups, and 16 bytes for each four pixels of a row and 16 more.
[[gnu::always_inline]] inline std::size_t tile_scratch(const ConvArgs& a) {
  return 2 * kTileSums * kTileBytes + (static_cast<std::size_t>(a.in_row / a.in_pixel) / 4 + 17) * 16;
}

}  // namespace fracskip
