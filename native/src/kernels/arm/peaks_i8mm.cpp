// What an Arm processor with matrix products of bytes reaches at most; see `Peaks`.
#include <arm_neon.h>

#include "kernels/arm/peaks.hpp"
#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace neon {
namespace {

std::int64_t peak_matrix(std::int64_t rounds) {
  int32x4_t sums[kPeakSums] = {};
  const uint8x16_t levels = vdupq_n_u8(1);
  const int8x16_t weights = vdupq_n_s8(1);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int32x4_t& sum : sums) {
      sum = vusmmlaq_s32(sum, levels, weights);
      keep(sum);
    }
  }
  return rounds * kPeakSums * 32;
}

}  // namespace
}  // namespace neon

constexpr Peaks kI8mmPeaks = {neon::peak_matrix, neon::peak_fp32, nullptr, neon::peak_read};

}  // namespace fracskip
