// ARMv8.0: convolutions of any shape, the gate.
//
// smull and smlal multiply signed bytes into 16 bits, eight an instruction. Levels less 128 are signed, and two products
// fit: 2 * 128 * 127 < 2^15. So each two are added up there, sadalp adds pairs of neighbours to 32 bits, and what 128
// times the weights comes to stands in the sums beforehand. Levels of fewer bits are signed as they are, and long runs fit.
#include <arm_neon.h>

#include "kernels/arm/direct.hpp"
#include "kernels/common/kernels.hpp"

#define FRACSKIP_GATE_NAMESPACE gate_neon
#include "kernels/common/gate.inl"

namespace fracskip {
namespace neon {
namespace {

inline int8x16_t weights_at(const std::int8_t* from) { return vld1q_s8(from); }

// Two neighbouring channels of a pixel, eight times.
template <int Pair>
inline int8x16_t pair_of(int8x16_t levels) { return vreinterpretq_s8_s16(vdupq_laneq_s16(vreinterpretq_s16_s8(levels), Pair)); }

// Weights: [block][16 offsets][kernel_h][kernel_w][pairs of in_channels, an even number][kBlock][2].
struct PairMath : SignedLevels {
  template <int Lane, int Pixels>
  [[gnu::always_inline]] static void add(const Levels (&levels)[Pixels], const Weight* weight, Block<Sum>& sum) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {  // of the outputs
      const int8x16_t first = weights_at(weight + half * kBlock), second = weights_at(weight + (half + 2) * kBlock);
#pragma GCC unroll 4
      for (int p = 0; p < Pixels; ++p) {
        const int8x16_t x = pair_of<2 * Lane>(levels[p]), y = pair_of<2 * Lane + 1>(levels[p]);
        const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(first), vget_low_s8(x)), vget_low_s8(second), vget_low_s8(y));
        const int16x8_t high = vmlal_high_s8(vmull_high_s8(first, x), second, y);
        sum[p][2 * half] = vpadalq_s16(sum[p][2 * half], low);
        sum[p][2 * half + 1] = vpadalq_s16(sum[p][2 * half + 1], high);
      }
    }
  }
};

// Weights as above, without offsets; levels are below 128.
struct NarrowMath : Integers {
  using Levels = int8x16_t;
  using Sum = int16x8_t;
  static constexpr bool kOffsets = false, kInRuns = true;
  static constexpr int kGroup = 4, kLanes = 4;
  static Levels load(const In* from) {
    int8x16_t levels = vreinterpretq_s8_u8(vld1q_u8(from));
    asm("" : "+w"(levels));  // else GCC loads each pair anew, through a general register
    return levels;
  }
  static Levels spread(const In* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  template <int Lane, int Pixels>
  [[gnu::always_inline]] static void add(const Levels (&levels)[Pixels], const Weight* weight, Block<Sum>& sum) {
    add_pair<2 * Lane, Pixels>(levels, weight, sum);
    add_pair<2 * Lane + 1, Pixels>(levels, weight + 2 * kBlock, sum);
  }
  template <int Pair, int Pixels>
  [[gnu::always_inline]] static void add_pair(const Levels (&levels)[Pixels], const Weight* weight, Block<Sum>& sum) {
    const int8x16_t first = weights_at(weight), second = weights_at(weight + kBlock);
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p) {
      const int8x16_t x = pair_of<Pair>(levels[p]);
      sum[p][0] = vmlal_s8(sum[p][0], vget_low_s8(first), vget_low_s8(x));
      sum[p][1] = vmlal_high_s8(sum[p][1], first, x);
      sum[p][2] = vmlal_s8(sum[p][2], vget_low_s8(second), vget_low_s8(x));
      sum[p][3] = vmlal_high_s8(sum[p][3], second, x);
    }
  }
  template <int Pixels>
  static void widen(Block<Sum>& part, Block<int32x4_t>& sum) {
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        sum[p][i] = vpadalq_s16(sum[p][i], part[p][i]);
        part[p][i] = vdupq_n_s16(0);
      }
    }
  }
};

// Weights: [block][kernel_h][kernel_w][in_channels][kBlock].
struct FloatMath {
  using In = float;
  using Weight = float;
  using Levels = float32x4_t;
  using Sum = float32x4_t;
  static constexpr bool kOffsets = false, kInRuns = false;
  static constexpr int kGroup = 1, kLanes = 4;
  static Levels load(const In* from) { return vld1q_f32(from); }
  static Levels spread(const In* from) { return vdupq_n_f32(*from); }
  template <int Lane, int Pixels>
  [[gnu::always_inline]] static void add(const Levels (&levels)[Pixels], const Weight* weight, Block<Sum>& sum) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const float32x4_t weights = vld1q_f32(weight + 4 * i);
#pragma GCC unroll 4
      for (int p = 0; p < Pixels; ++p) sum[p][i] = vfmaq_laneq_f32(sum[p][i], weights, levels[p], Lane);
    }
  }
  template <int Pixels>
  static void arrange(Block<Sum>&) {}
};

template <Residual R, Element O>
struct DirectInt {
  static void run(const ConvArgs& a) { direct<PairMath, R, O>(a); }
};
template <Residual R, Element O>
struct DirectNarrow {
  static void run(const ConvArgs& a) { direct<NarrowMath, R, O>(a); }
};
template <Residual R, Element O>
struct DirectFloat {
  static void run(const ConvArgs& a) { direct<FloatMath, R, O>(a); }
};

}  // namespace
}  // namespace neon

constexpr KernelSet kNeonKernels = [] {
  KernelSet set;
  set.name = "neon";
  set.conv_int = neon::dispatch<neon::DirectInt>;
  set.conv_narrow = neon::dispatch<neon::DirectNarrow>;
  set.conv_float = neon::dispatch<neon::DirectFloat>;
  set.winograd_int = neon::winograd_int;
  set.winograd_float = neon::winograd_float;
  set.winograd_4x2_short = neon::winograd_4x2_short;
  set.winograd_4x2_wide = neon::winograd_4x2_wide;
  set.byte_pairs = true;
  set.winograd_group = 1;
  set.int_group = set.narrow_group = 2;
  set.int_multiple = 4;
  set.int_offsets = true;
  set.narrow_apart = 2;
  set.narrow_top = 127;
  set.gate = gate_neon::decide;
  set.values = &kNeonValues;
  set.resize = &kScalarResize;
  set.peaks = &kNeonPeaks;
  return set;
}();

}  // namespace fracskip
