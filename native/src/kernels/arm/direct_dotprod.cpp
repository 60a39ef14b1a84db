// Arm's dot products (ARMv8.2): sdot adds four products of signed bytes to each of four sums, exactly. Levels are made
// signed as in direct_neon.cpp, which has all kernels but the integers'.
#include <arm_neon.h>

#include "kernels/arm/direct.hpp"
#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace neon {
namespace {

// Weights: [block][16 offsets][kernel_h][kernel_w][fours of in_channels][kBlock][4].
struct DotMath : SignedLevels {
  template <int Lane, int Pixels>
  [[gnu::always_inline]] static void add(const Levels (&levels)[Pixels], const Weight* weight, Block<Sum>& sum) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const int8x16_t weights = vld1q_s8(weight + i * kBlock);
#pragma GCC unroll 4
      for (int p = 0; p < Pixels; ++p) sum[p][i] = vdotq_laneq_s32(sum[p][i], weights, levels[p], Lane);
    }
  }
};

template <Residual R, Element O>
struct DirectDot {
  static void run(const ConvArgs& a) { direct<DotMath, R, O>(a); }
};

// Functions of the plain set, through it: which file is compiled how stays its own affair.
void conv_float(const ConvArgs& a) { kNeonKernels.conv_float(a); }
void float_winograd(const ConvArgs& a) { kNeonKernels.winograd_float(a); }
int gate(const GateArgs& a) { return kNeonKernels.gate(a); }

}  // namespace
}  // namespace neon

constexpr KernelSet kDotprodKernels = [] {
  KernelSet set;
  set.name = "neon_dotprod";
  set.conv_int = neon::dispatch<neon::DirectDot>;
  set.conv_float = neon::conv_float;
  set.winograd_float = neon::float_winograd;
  set.int_group = 4;
  set.int_offsets = true;
  set.gate = neon::gate;
  set.values = &kNeonValues;
  set.resize = &kScalarResize;
  set.peaks = &kDotprodPeaks;
  return set;
}();

}  // namespace fracskip
