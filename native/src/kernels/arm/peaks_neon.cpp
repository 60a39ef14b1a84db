// What an ARMv8.0 processor reaches at most; see `Peaks`. Exact products of bytes are those of 16 bits.
#include "kernels/arm/peaks.hpp"

#include <arm_neon.h>

#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace neon {
namespace {

std::int64_t peak_int8(std::int64_t rounds) {
  int32x4_t sums[kPeakSums] = {};
  const int16x4_t levels = vdup_n_s16(1), weights = vdup_n_s16(1);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int32x4_t& sum : sums) {
      sum = vmlal_s16(sum, levels, weights);
      keep(sum);
    }
  }
  return rounds * kPeakSums * 4;
}

}  // namespace

std::int64_t peak_fp32(std::int64_t rounds) {
  float32x4_t sums[kPeakSums] = {};
  const float32x4_t values = vdupq_n_f32(1.f), weights = vdupq_n_f32(1.f);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (float32x4_t& sum : sums) {
      sum = vfmaq_f32(sum, values, weights);
      keep(sum);
    }
  }
  return rounds * kPeakSums * 4;
}

void peak_read(const void* from, std::size_t bytes) {
  const auto* at = static_cast<const std::uint8_t*>(from);
  for (const auto* end = at + bytes; at < end; at += kPeakBytes) {
#pragma GCC unroll 32
    for (std::size_t k = 0; k < kPeakBytes; k += 16) {
      uint8x16_t some = vld1q_u8(at + k);
      keep(some);
    }
  }
}

}  // namespace neon

constexpr Peaks kNeonPeaks = {neon::peak_int8, neon::peak_fp32, nullptr, neon::peak_read};

}  // namespace fracskip
