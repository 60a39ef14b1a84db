// What the AVX2 kernels do with 16 channels of two neighbouring pixels once they are summed up:
// residual, requantisation, channel sums, store. Included by files compiled with -mavx2 only.
#pragma once

#include <immintrin.h>

#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace avx2 {

void winograd_int(const ConvArgs& a);
void winograd_float(const ConvArgs& a);
void winograd_2x2_short(const ConvArgs& a);
void winograd_2x2_wide(const ConvArgs& a);
void winograd_4x2_short(const ConvArgs& a);
void winograd_4x2_wide(const ConvArgs& a);

namespace {

using IntLanes = std::uint32_t __attribute__((vector_size(32), may_alias));  // modulo 2^32
using FloatLanes = float __attribute__((vector_size(32), may_alias));

// Channel sums of one block of 16 channels while its pixels go by.
struct Sums {
  __m256i low, high;     // u8: channels 0..7 and 8..15 as 16 bits, two pixels in the two halves
  __m256 first, second;  // f32
  int pixels;            // added since the last flush

  void clear() {
    low = high = _mm256_setzero_si256();
    first = second = _mm256_setzero_ps();
    pixels = 0;
  }
};

inline void add_sums(const ConvArgs& a, int channel, Sums& sums) {
  if (!a.sums) return;
  if (a.out_type == Element::u8) {
    std::uint32_t* to = static_cast<std::uint32_t*>(a.sums) + channel;
    const __m128i low = _mm_add_epi16(_mm256_castsi256_si128(sums.low), _mm256_extracti128_si256(sums.low, 1));
    const __m128i high = _mm_add_epi16(_mm256_castsi256_si128(sums.high), _mm256_extracti128_si256(sums.high, 1));
    __m256i* at = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), _mm256_cvtepu16_epi32(low)));
    _mm256_storeu_si256(at + 1, _mm256_add_epi32(_mm256_loadu_si256(at + 1), _mm256_cvtepu16_epi32(high)));
  } else {
    float* to = static_cast<float*>(a.sums) + channel;
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sums.first));
    _mm256_storeu_ps(to + 8, _mm256_add_ps(_mm256_loadu_ps(to + 8), sums.second));
  }
  sums.clear();
}

// 16-bit sums of 8-bit levels hold 128 additions of two halves of at most 255 each.
inline constexpr int kMostPixels = 240;

template <Residual R>
__attribute__((always_inline)) inline void add_residual(const ConvArgs& a, std::ptrdiff_t at, __m256& low, __m256& high) {
  if (R == Residual::u8) {
    const auto levels = [from = static_cast<const std::uint8_t*>(a.residual) + at](int c) {
      return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + c))));
    };
    low = _mm256_add_ps(low, levels(0));
    high = _mm256_add_ps(high, levels(8));
  } else if (R == Residual::f32) {
    const float* from = static_cast<const float*>(a.residual) + at;
    low = _mm256_add_ps(low, _mm256_loadu_ps(from));
    high = _mm256_add_ps(high, _mm256_loadu_ps(from + 8));
  }
}

// y[pixel][half] with scale and bias already in it. `both`: whether the second pixel exists.
template <Residual R, Result O>
__attribute__((always_inline)) inline void emit(const ConvArgs& a, int h, int w, int channel, bool both, __m256 y[2][2],
                        Sums& sums) {
  const std::ptrdiff_t from = h * a.residual_row + static_cast<std::ptrdiff_t>(w) * a.residual_pixel + channel;
  add_residual<R>(a, from, y[0][0], y[0][1]);
  if (R != Residual::none && both) add_residual<R>(a, from + a.residual_pixel, y[1][0], y[1][1]);
  const std::ptrdiff_t to = h * a.out_row + static_cast<std::ptrdiff_t>(w) * a.out_pixel + channel;
  if constexpr (is_levels(O)) {
    const __m256 top = _mm256_set1_ps(a.top), input = _mm256_set1_ps(a.input);
    __m256i q[2][2];
    for (int p = 0; p < 2; ++p) {
      // Saturation clamps at 0; the minimum keeps what is larger than an int away from it.
      for (int half = 0; half < 2; ++half) {
        if (O == Result::levels) y[p][half] = _mm256_min_ps(_mm256_mul_ps(y[p][half], input), top);
        q[p][half] = _mm256_cvtps_epi32(y[p][half]);
      }
    }
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(q[0][0], q[0][1]), _mm256_packs_epi32(q[1][0], q[1][1]));
    if (O == Result::bounded_levels) bytes = _mm256_min_epu8(bytes, _mm256_set1_epi8(static_cast<char>(static_cast<int>(a.top))));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    std::uint8_t* out = static_cast<std::uint8_t*>(a.out) + to;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(bytes));
    __m256i counted = bytes;
    if (both) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + a.out_pixel), _mm256_extracti128_si256(bytes, 1));
    } else {
      counted = _mm256_zextsi128_si256(_mm256_castsi256_si128(bytes));
    }
    if (a.sums) {
      const __m256i zero = _mm256_setzero_si256();
      sums.low = _mm256_add_epi16(sums.low, _mm256_unpacklo_epi8(counted, zero));
      sums.high = _mm256_add_epi16(sums.high, _mm256_unpackhi_epi8(counted, zero));
      sums.pixels += 2;
      if (sums.pixels >= kMostPixels) add_sums(a, channel, sums);
    }
  } else {
    float* out = static_cast<float*>(a.out) + to;
    for (int p = 0; p < (both ? 2 : 1); ++p) {
      for (int half = 0; half < 2; ++half) {
        if (a.relu) y[p][half] = _mm256_min_ps(_mm256_max_ps(y[p][half], _mm256_setzero_ps()), _mm256_set1_ps(a.most));
        _mm256_storeu_ps(out + p * a.out_pixel + half * 8, y[p][half]);
      }
      sums.first = _mm256_add_ps(sums.first, y[p][0]);
      sums.second = _mm256_add_ps(sums.second, y[p][1]);
    }
  }
}

// An integer or float accumulator to a value with scale and bias.
inline __m256 finish(const ConvArgs& a, int channel, __m256i sum) {
  const __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(a.scale + channel));
  return _mm256_add_ps(y, _mm256_loadu_ps(a.bias + channel));
}
inline __m256 finish(const ConvArgs& a, int channel, __m256 sum) {
  return _mm256_add_ps(sum, _mm256_loadu_ps(a.bias + channel));
}

// Calls Kernel<residual, result>::run for the arguments' types.
template <template <Residual, Result> class Kernel, Result O>
void dispatch_residual(const ConvArgs& a) {
  if (a.residual_type == Residual::none) return Kernel<Residual::none, O>::run(a);
  if (a.residual_type == Residual::u8) return Kernel<Residual::u8, O>::run(a);
  if constexpr (O != Result::bounded_levels) return Kernel<Residual::f32, O>::run(a);
}
template <template <Residual, Result> class Kernel, bool Integer = false>
void dispatch(const ConvArgs& a) {
  if (a.out_type == Element::f32) return dispatch_residual<Kernel, Result::f32>(a);
  if constexpr (Integer) {
    if (a.bounded) return dispatch_residual<Kernel, Result::bounded_levels>(a);
  }
  return dispatch_residual<Kernel, Result::levels>(a);
}

}  // namespace
}  // namespace avx2
}  // namespace fracskip
