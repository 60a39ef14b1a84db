// What an AVX2 processor reaches at most; see `Peaks`.
#include <immintrin.h>

#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace {

constexpr int kSums = 12;  // as many as hide an addition's latency, and fit registers

// Nothing is known of the value afterwards, and it is needed: so no product is left out or made once for all.
template <class Register>
[[gnu::always_inline]] inline void keep(Register& value) {
  asm volatile("" : "+x"(value));
}

std::int64_t int8(std::int64_t rounds) {
  __m256i sums[kSums] = {}, levels = _mm256_set1_epi16(1), weights = _mm256_set1_epi16(1);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (__m256i& sum : sums) {
      keep(levels);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(levels, weights));
      keep(sum);
    }
  }
  return rounds * kSums * 16;
}

std::int64_t fp32(std::int64_t rounds) {
  __m256 sums[kSums] = {}, values = _mm256_set1_ps(1.f), weights = _mm256_set1_ps(1.f);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (__m256& sum : sums) {
      sum = _mm256_fmadd_ps(values, weights, sum);
      keep(sum);
    }
  }
  return rounds * kSums * 8;
}

void read(const void* from, std::size_t bytes) {
  const auto* at = static_cast<const __m256i*>(from);
  for (const auto* end = at + bytes / sizeof(__m256i); at < end; at += kPeakBytes / sizeof(__m256i)) {
#pragma GCC unroll 16
    for (std::size_t k = 0; k < kPeakBytes / sizeof(__m256i); ++k) {
      __m256i line = _mm256_load_si256(at + k);
      keep(line);
    }
  }
}

}  // namespace

constexpr Peaks kAvx2Peaks = {int8, fp32, nullptr, read};

}  // namespace fracskip
