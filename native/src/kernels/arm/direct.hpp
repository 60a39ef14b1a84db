// Direct convolutions of any shape on Arm, in terms of how an instruction multiplies (a `Math`):
//   In, Weight           elements of the input and of the weights
//   Levels, Sum          vectors of a pixel's channels and of sums: four hold what 16 outputs come to
//   kGroup, kLanes       channels that one `add` takes, and how many such groups a vector of them has
//   load, spread         a vector of channels; one group in its first place
//   add<Lane, Pixels>    sum += the channels' group `Lane` times its weights, of neighbouring pixels
//   arrange<Pixels>      sums to [pixel][16 outputs]
//   kOffsets             whether sums begin with the values that stand before a block's weights
//   kInRuns              whether sums are of 16 bits; `widen` adds them to 32 bits after so many groups
// Included by files that are compiled for different instruction sets: nothing of it has external linkage.
#pragma once

#include "kernels/arm/epilogue_neon.hpp"

namespace fracskip {
namespace neon {
namespace {

template <class Sum>
using Block = Sum[kPixels][kParts];

template <class Math, int Pixels, int Lane = 0>
[[gnu::always_inline]] inline void add_lanes(const typename Math::Levels (&levels)[Pixels], const typename Math::Weight* weight,
                                             Block<typename Math::Sum>& sum) {
  Math::template add<Lane, Pixels>(levels, weight, sum);
  if constexpr (Lane + 1 < Math::kLanes) add_lanes<Math, Pixels, Lane + 1>(levels, weight + Math::kGroup * kBlock, sum);
}

// The sums of neighbouring pixels, `step` apart. `prepare` is called before so many groups are added.
template <class Math, int Pixels, class Prepare>
[[gnu::always_inline]] inline void accumulate(const ConvArgs& a, std::ptrdiff_t step, const typename Math::In* row,
                                              const typename Math::Weight* weight, Block<typename Math::Sum>& sum, Prepare prepare) {
  constexpr int kGroup = Math::kGroup, kChunk = kGroup * Math::kLanes;
  const int whole = a.in_channels / kChunk * kChunk;
  typename Math::Levels levels[Pixels];
  for (int y = 0; y < a.kernel_h; ++y, row += a.in_row) {
    for (int x = 0; x < a.kernel_w; ++x) {
      const typename Math::In* in = row + static_cast<std::ptrdiff_t>(x) * a.in_pixel;
      for (int c = 0; c < whole; c += kChunk, in += kChunk, weight += kChunk * kBlock) {
        prepare(Math::kLanes);
#pragma GCC unroll 4
        for (int p = 0; p < Pixels; ++p) levels[p] = Math::load(in + p * step);
        add_lanes<Math, Pixels>(levels, weight, sum);
      }
      for (int c = whole; c < a.in_channels; c += kGroup, in += kGroup, weight += kGroup * kBlock) {
        prepare(1);
#pragma GCC unroll 4
        for (int p = 0; p < Pixels; ++p) levels[p] = Math::spread(in + p * step);
        Math::template add<0, Pixels>(levels, weight, sum);
      }
    }
  }
}

// Kept out of line, where everything stays in registers.
template <class Math, int Pixels, Residual R, Element O>
[[gnu::noinline]] void row_piece(const ConvArgs& a, int step, int h, int w, int block, Sums& sums) {
  using Sum = typename Math::Sum;
  constexpr int kGroup = Math::kGroup;
  const int padded = (a.in_channels + kGroup - 1) / kGroup * kGroup;
  const std::ptrdiff_t offsets = Math::kOffsets ? kBlock * sizeof(std::int32_t) : 0;
  const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(a.kernel_h) * a.kernel_w * padded * kBlock + offsets;
  const auto* weight = static_cast<const typename Math::Weight*>(a.weights) + block * size;
  const auto* in = static_cast<const typename Math::In*>(a.in) + h * a.stride_h * a.in_row + w * static_cast<std::ptrdiff_t>(step);
  const int channel = block * kBlock;
  Block<Sum> sum;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    Sum first = {};
    if constexpr (Math::kOffsets) first = Math::offset(weight, i);
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) sum[p][i] = first;
  }
  Values y;
  if constexpr (Math::kInRuns) {
    Block<int32x4_t> total = {};
    int left = a.run;
    accumulate<Math, Pixels>(a, step, in, weight, sum, [&](int groups) __attribute__((always_inline)) {
      if (left < groups) {
        Math::template widen<Pixels>(sum, total);
        left = a.run;
      }
      left -= groups;
    });
    Math::template widen<Pixels>(sum, total);
    finish<Pixels>(a, channel, total, y);
  } else {
    accumulate<Math, Pixels>(a, step, in, weight + offsets, sum, [](int) {});
    Math::template arrange<Pixels>(sum);
    finish<Pixels>(a, channel, sum, y);
  }
  emit<R, O, Pixels>(a, h, w, channel, y, sums);
}

template <class Math, Residual R, Element O>
void direct(ConvArgs a) {
  // Where pixels lie side by side, a row of taps is one long run of channels.
  const int step = a.stride_w * a.in_pixel;
  if (a.in_pixel == a.in_channels && a.in_channels % Math::kGroup == 0) {
    a.in_channels *= a.kernel_w;
    a.kernel_w = 1;
  }
  for (int block = 0; block < a.out_blocks; ++block) {
    Sums sums;
    sums.clear();
    for (int h = 0; h < a.out_h; ++h) {
      int w = 0;
      for (; w + kPixels <= a.out_w; w += kPixels) row_piece<Math, 4, R, O>(a, step, h, w, block, sums);
      switch (a.out_w - w) {
        case 3: row_piece<Math, 3, R, O>(a, step, h, w, block, sums); break;
        case 2: row_piece<Math, 2, R, O>(a, step, h, w, block, sums); break;
        case 1: row_piece<Math, 1, R, O>(a, step, h, w, block, sums); break;
        default: break;
      }
    }
    add_sums(a, block * kBlock, sums);
  }
}

// What integers share.
struct Integers {
  using In = std::uint8_t;
  using Weight = std::int8_t;
  using Sum = int32x4_t;
  static constexpr bool kInRuns = false;
  static int32x4_t offset(const Weight* weight, int part) { return vld1q_s32(reinterpret_cast<const std::int32_t*>(weight) + 4 * part); }
  template <int Pixels>
  static void arrange(Block<Sum>&) {}
};

// Levels less 128, which makes them signed; what sums begin with makes up for it.
struct SignedLevels : Integers {
  using Levels = int8x16_t;
  static constexpr bool kOffsets = true;
  static constexpr int kGroup = 4, kLanes = 4;
  static Levels flipped(uint8x16_t levels) { return vreinterpretq_s8_u8(veorq_u8(levels, vdupq_n_u8(0x80))); }
  static Levels load(const In* from) { return flipped(vld1q_u8(from)); }
  static Levels spread(const In* from) {
    std::uint32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return flipped(vreinterpretq_u8_u32(vdupq_n_u32(four)));
  }
};

}  // namespace
}  // namespace neon
}  // namespace fracskip
