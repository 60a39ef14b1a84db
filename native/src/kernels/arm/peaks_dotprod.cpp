// What an Arm processor with dot products reaches at most; see `Peaks`.
#include <arm_neon.h>

#include "kernels/arm/peaks.hpp"
#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace neon {
namespace {

std::int64_t peak_dot(std::int64_t rounds) {
  int32x4_t sums[kPeakSums] = {};
  const int8x16_t levels = vdupq_n_s8(1), weights = vdupq_n_s8(1);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int32x4_t& sum : sums) {
      sum = vdotq_s32(sum, levels, weights);
      keep(sum);
    }
  }
  return rounds * kPeakSums * 16;
}

}  // namespace
}  // namespace neon

constexpr Peaks kDotprodPeaks = {neon::peak_dot, neon::peak_fp32, nullptr, neon::peak_read};

}  // namespace fracskip
