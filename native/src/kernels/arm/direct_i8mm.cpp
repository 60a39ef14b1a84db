// Arm's matrix products (i8mm, ARMv8.6): usmmla multiplies two pixels' eight levels with two outputs' eight weights,
// 32 products an instruction, and takes levels as they are. All kernels but the integers' are direct_neon.cpp's.
#include <arm_neon.h>

#include "kernels/arm/direct.hpp"
#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace neon {
namespace {

// Weights: [block][kernel_h][kernel_w][eights of in_channels][kBlock][8]. Sums are of two pixels and two outputs; those
// of a pair of pixels lie in both their rows.
struct MatrixMath : Integers {
  using Levels = uint8x16_t;
  static constexpr bool kOffsets = false;
  static constexpr int kGroup = 8, kLanes = 2;
  static Levels load(const In* from) { return vld1q_u8(from); }
  static Levels spread(const In* from) { return vcombine_u8(vld1_u8(from), vdup_n_u8(0)); }
  template <int Lane, int Pixels>
  [[gnu::always_inline]] static void add(const Levels (&levels)[Pixels], const Weight* weight, Block<Sum>& sum) {
#pragma GCC unroll 2
    for (int p = 0; p < Pixels; p += 2) {
      const uint64x2_t one = vreinterpretq_u64_u8(levels[p]), other = vreinterpretq_u64_u8(levels[p + 1 < Pixels ? p + 1 : p]);
      const uint8x16_t both = vreinterpretq_u8_u64(Lane == 0 ? vzip1q_u64(one, other) : vzip2q_u64(one, other));
#pragma GCC unroll 8
      for (int i = 0; i < 2 * kParts; ++i) {
        int32x4_t& to = sum[p + i / kParts][i % kParts];
        to = vusmmlaq_s32(to, both, vld1q_s8(weight + i * kBlock));
      }
    }
  }
  template <int Pixels>
  [[gnu::always_inline]] static void arrange(Block<Sum>& sum) {
#pragma GCC unroll 2
    for (int p = 0; p < Pixels; p += 2) {
      int64x2_t pairs[2 * kParts];
#pragma GCC unroll 8
      for (int i = 0; i < 2 * kParts; ++i) pairs[i] = vreinterpretq_s64_s32(sum[p + i / kParts][i % kParts]);
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        sum[p][i] = vreinterpretq_s32_s64(vzip1q_s64(pairs[2 * i], pairs[2 * i + 1]));
        sum[p + 1][i] = vreinterpretq_s32_s64(vzip2q_s64(pairs[2 * i], pairs[2 * i + 1]));
      }
    }
  }
};

template <Residual R, Element O>
struct DirectMatrix {
  static void run(const ConvArgs& a) { direct<MatrixMath, R, O>(a); }
};

// Functions of the plain set, through it: which file is compiled how stays its own affair.
void conv_float(const ConvArgs& a) { kNeonKernels.conv_float(a); }
void float_winograd(const ConvArgs& a) { kNeonKernels.winograd_float(a); }
int gate(const GateArgs& a) { return kNeonKernels.gate(a); }

}  // namespace
}  // namespace neon

constexpr KernelSet kI8mmKernels = [] {
  KernelSet set;
  set.name = "neon_i8mm";
  set.conv_int = neon::dispatch<neon::DirectMatrix>;
  set.conv_float = neon::conv_float;
  set.winograd_float = neon::float_winograd;
  set.int_group = 8;
  set.gate = neon::gate;
  set.values = &kNeonValues;
  set.resize = &kScalarResize;
  set.peaks = &kI8mmPeaks;
  return set;
}();

}  // namespace fracskip
