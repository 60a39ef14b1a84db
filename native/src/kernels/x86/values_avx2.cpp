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

constexpr ValueKernels kAvx2Values = FRACSKIP_VALUES::value_kernels(FRACSKIP_VALUES::depthwise<std::uint8_t, float>,
                                                              FRACSKIP_VALUES::depthwise<std::uint8_t, std::uint8_t>);

}  // namespace fracskip
