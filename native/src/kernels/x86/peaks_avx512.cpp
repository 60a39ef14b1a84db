// What a processor with AVX-512 VNNI reaches at most; see `Peaks`.
#include "kernels/x86/peaks.hpp"

#include <immintrin.h>

#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace avx512 {
namespace {

constexpr int kSums = 12;  // as many as hide an addition's latency

// The value is needed, and nothing is known of it afterwards.
template <class Register>
[[gnu::always_inline]] inline void keep(Register& value) {
  asm volatile("" : "+v"(value));
}

std::int64_t peak_int8(std::int64_t rounds) {
  __m512i sums[kSums] = {}, levels = _mm512_set1_epi8(1), weights = _mm512_set1_epi8(1);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (__m512i& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, levels, weights);
      keep(sum);
    }
  }
  return rounds * kSums * 64;
}

}  // namespace

std::int64_t peak_fp32(std::int64_t rounds) {
  __m512 sums[kSums] = {}, values = _mm512_set1_ps(1.f), weights = _mm512_set1_ps(1.f);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (__m512& sum : sums) {
      sum = _mm512_fmadd_ps(values, weights, sum);
      keep(sum);
    }
  }
  return rounds * kSums * 16;
}

void peak_read(const void* from, std::size_t bytes) {
  const auto* at = static_cast<const __m512i*>(from);
  for (const auto* end = at + bytes / sizeof(__m512i); at < end; at += kPeakBytes / sizeof(__m512i)) {
#pragma GCC unroll 8
    for (std::size_t k = 0; k < kPeakBytes / sizeof(__m512i); ++k) {
      __m512i line = _mm512_load_si512(at + k);
      keep(line);
    }
  }
}

}  // namespace avx512

constexpr Peaks kAvx512Peaks = {avx512::peak_int8, avx512::peak_fp32, nullptr, avx512::peak_read};

}  // namespace fracskip
