// Values with AVX2.
#include <immintrin.h>

#include "kernels/common/kernels.hpp"

#define FRACSKIP_VALUES values_avx2

namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

using Lanes = __m256;
constexpr int kLanes = 8;

inline Lanes load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Lanes x) { _mm256_storeu_ps(to, x); }
inline Lanes all(float x) { return _mm256_set1_ps(x); }
inline Lanes from_levels(const std::uint8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
inline void to_levels(std::uint8_t* to, Lanes x) {  // of 0 to 255
  const __m256i q = _mm256_cvtps_epi32(x);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}
inline Lanes times_plus(Lanes x, Lanes y, Lanes z) { return _mm256_fmadd_ps(x, y, z); }
inline Lanes largest(Lanes x, Lanes y) { return _mm256_max_ps(x, y); }
inline Lanes smallest(Lanes x, Lanes y) { return _mm256_min_ps(x, y); }
inline Lanes root(Lanes x) { return _mm256_sqrt_ps(x); }
inline Lanes rounded(Lanes x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Lanes two_to(Lanes n) {  // of whole numbers from -126 to 127
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Lanes where_less(Lanes x, Lanes y, Lanes then, Lanes otherwise) {
  return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}

}  // namespace
}  // namespace FRACSKIP_VALUES
}  // namespace fracskip

#include "kernels/common/values.inl"

namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

void relevel_short(const StageArgs& a) {
  const __m256i factor = _mm256_set1_epi16(static_cast<short>(a.factor16)), begin = _mm256_set1_epi16(static_cast<short>(a.begin16));
  const __m256i top = _mm256_set1_epi8(static_cast<char>(static_cast<int>(a.top))), zero = _mm256_setzero_si256();
  const __m128i shift = _mm_cvtsi32_si128(a.shift16);
  const auto half = [=](__m256i high) { return _mm256_srl_epi16(_mm256_add_epi16(_mm256_mulhi_epu16(high, factor), begin), shift); };
  const auto levels = [=](__m256i q) {
    return _mm256_min_epu8(_mm256_packus_epi16(half(_mm256_unpacklo_epi8(zero, q)), half(_mm256_unpackhi_epi8(zero, q))), top);
  };
  const bool dense = a.in_pixel == a.channels && a.out_pixel == a.channels;
  const std::ptrdiff_t runs = dense ? 1 : a.w, run = dense ? static_cast<std::ptrdiff_t>(a.w) * a.channels : a.channels;
  for (int h = 0; h < a.h; ++h) {
    for (std::ptrdiff_t r = 0; r < runs; ++r) {
      const std::uint8_t* in = static_cast<const std::uint8_t*>(a.in) + h * a.in_row + r * a.in_pixel;
      std::uint8_t* out = static_cast<std::uint8_t*>(a.out) + h * a.out_row + r * a.out_pixel;
      std::ptrdiff_t i = 0;
      for (; i + 32 <= run; i += 32) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), levels(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
      }
      for (; i < run; i += kBlock) {
        const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_castsi256_si128(levels(_mm256_castsi128_si256(q))));
      }
    }
  }
  surround(a);
}

}  // namespace
}  // namespace FRACSKIP_VALUES

constexpr ValueKernels kAvx2Values = [] {
  ValueKernels kernels = FRACSKIP_VALUES::value_kernels(FRACSKIP_VALUES::depthwise<std::uint8_t, float>, FRACSKIP_VALUES::depthwise<std::uint8_t, std::uint8_t>);
  kernels.relevel_short = FRACSKIP_VALUES::relevel_short;
  return kernels;
}();

}  // namespace fracskip
