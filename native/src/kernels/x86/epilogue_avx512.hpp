// What the AVX-512 and AMX kernels do with 16 channels of neighbouring pixels once they are summed up:
// scale, bias, residual, requantisation, channel sums, store. Included by files compiled with
// -mavx512vnni at least.
#pragma once

#include <immintrin.h>

#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace avx512 {

void winograd_2x2_wide(const ConvArgs& a);
void winograd_4x2_wide(const ConvArgs& a);

namespace {

inline constexpr int kTogether = 4;  // pixels whose levels are packed into one vector

// Channel sums of one block of 16 channels while its pixels go by.
struct Sums {
  __m512i levels = _mm512_setzero_si512();
  __m512 values = _mm512_setzero_ps();
};

// Where a block of channels of some pixels goes, in bytes, and what it is finished with.
struct Target {
  const float *scale, *bias;
  const char* residual;
  char* out;
  std::ptrdiff_t residual_pixel, out_pixel;
  float input, top, most;
  bool relu, add_up;

  // From pixel (h, w) on.
  Target(const ConvArgs& a, int block, int h, int w)
      : scale(a.scale + block * kBlock), bias(a.bias + block * kBlock), input(a.input), top(a.top), most(a.most), relu(a.relu), add_up(a.sums != nullptr) {
    const std::ptrdiff_t out_size = size_of(a.out_type);
    const std::ptrdiff_t residual_size = a.residual_type == Residual::f32 ? sizeof(float) : 1;
    out_pixel = a.out_pixel * out_size;
    residual_pixel = a.residual_pixel * residual_size;
    out = static_cast<char*>(a.out) + (h * a.out_row + block * kBlock) * out_size + w * out_pixel;
    residual = static_cast<const char*>(a.residual) + (h * a.residual_row + block * kBlock) * residual_size + w * residual_pixel;
  }
  Target() = default;
};

// The documented formula: three roundings, no contraction.
__attribute__((always_inline)) inline __m512 scaled(const Target& t, __m512i sum) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(t.scale));
}
__attribute__((always_inline)) inline __m512 scaled(const Target&, __m512 sum) { return sum; }

template <Residual R, class Sum>
__attribute__((always_inline)) inline __m512 value_of(const Target& t, Sum sum, std::ptrdiff_t pixel) {
  __m512 y = _mm512_add_ps(scaled(t, sum), _mm512_loadu_ps(t.bias));
  if (R == Residual::u8) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(t.residual + pixel * t.residual_pixel));
    y = _mm512_add_ps(y, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
  } else if (R == Residual::f32) {
    y = _mm512_add_ps(y, _mm512_loadu_ps(t.residual + pixel * t.residual_pixel));
  }
  return y;
}

// Four pixels' values to levels; each lane then holds four channels of the four pixels. Packing saturates
// at 0 and 255, and the smallest integer, which stands for what does not fit one, at 0.
template <Result O>
__attribute__((always_inline)) inline __m512i levels_of(const __m512 (&y)[kTogether], float top) {
  constexpr bool kBounded = O == Result::bounded_levels;
  __m512i q[kTogether];
#pragma GCC unroll 4
  for (int p = 0; p < kTogether; ++p) q[p] = _mm512_cvtps_epi32(kBounded ? y[p] : _mm512_min_ps(y[p], _mm512_set1_ps(top)));
  const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  return kBounded ? _mm512_min_epu8(bytes, _mm512_set1_epi8(static_cast<char>(static_cast<int>(top)))) : bytes;
}

// A channel's four pixels next to one another, then added to its 32 bits.
__attribute__((always_inline)) inline void add_up(Sums& sums, __m512i levels) {
  const __m512i channelwise = _mm512_shuffle_epi8(levels, _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
  sums.levels = _mm512_dpbusd_epi32(sums.levels, channelwise, _mm512_set1_epi8(1));
}

// A pixel a lane.
__attribute__((always_inline)) inline __m512i by_pixels(__m512i levels) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), levels);
}

// Only what is compiled for bfloat16 may ask for it.
template <Result O>
__attribute__((always_inline)) inline void store_values(char* to, __m512 values) {
  if constexpr (O == Result::bf16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
  } else {
    _mm512_storeu_ps(to, values);
  }
}

// Finishes the `Pixels` pixels from `pixel` on, four at most. Sums are integers or floats.
template <int Pixels, Residual R, Result O, class Sum>
__attribute__((always_inline)) inline void finish(const Target& t, std::ptrdiff_t pixel, const Sum (&sum)[kTogether], Sums& sums) {
  __m512 y[kTogether];
#pragma GCC unroll 4
  for (int p = 0; p < kTogether; ++p) y[p] = p < Pixels ? value_of<R>(t, sum[p], pixel + p) : _mm512_setzero_ps();
  char* const out = t.out + pixel * t.out_pixel;
  if (!is_levels(O)) {
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p) {
      if (t.relu) y[p] = _mm512_min_ps(_mm512_max_ps(y[p], _mm512_setzero_ps()), _mm512_set1_ps(t.most));
      store_values<O>(out + p * t.out_pixel, y[p]);
      sums.values = _mm512_add_ps(sums.values, y[p]);
    }
    return;
  }
#pragma GCC unroll 4
  for (int p = 0; p < kTogether; ++p) y[p] = O == Result::bounded_levels ? y[p] : _mm512_mul_ps(y[p], _mm512_set1_ps(t.input));
  const __m512i levels = levels_of<O>(y, t.top);
  if (t.add_up) add_up(sums, levels);
  const __m512i pixels = by_pixels(levels);
  const auto to = [out, &t](int p) { return reinterpret_cast<__m128i*>(out + p * t.out_pixel); };
  _mm_storeu_si128(to(0), _mm512_castsi512_si128(pixels));
  if (Pixels > 1) _mm_storeu_si128(to(1), _mm512_extracti32x4_epi32(pixels, 1));
  if (Pixels > 2) _mm_storeu_si128(to(2), _mm512_extracti32x4_epi32(pixels, 2));
  if (Pixels > 3) _mm_storeu_si128(to(3), _mm512_extracti32x4_epi32(pixels, 3));
}

// Which of four pixels there are, for levels of either order: the first so many.
struct Present {
  std::uint64_t levels, pixels;

  explicit Present(int count)
      : levels(((1u << 4 * count) - 1) * 0x0001000100010001ull), pixels(count == kTogether ? ~0ull : (1ull << 16 * count) - 1) {}
};

// Finishes four pixels whose levels, and whose residual's, lie side by side. Values are in the levels' unit.
template <Residual R, Result O>
__attribute__((always_inline)) inline void finish_dense(const Target& t, const __m512i (&sum)[kTogether], const Present& present,
                                                        Sums& sums) {
  __m512 y[kTogether];
#pragma GCC unroll 4
  for (int p = 0; p < kTogether; ++p) y[p] = value_of<R>(t, sum[p], p);
  const __m512i levels = _mm512_maskz_mov_epi8(present.levels, levels_of<O>(y, t.top));
  if (t.add_up) add_up(sums, levels);
  _mm512_mask_storeu_epi8(t.out, present.pixels, by_pixels(levels));
}

template <Result O>
inline void add_sums(const ConvArgs& a, int block, const Sums& sums) {
  if (!a.sums) return;
  if (is_levels(O)) {
    std::uint32_t* to = static_cast<std::uint32_t*>(a.sums) + block * kBlock;
    _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), sums.levels));
  } else {
    float* to = static_cast<float*>(a.sums) + block * kBlock;
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums.values));
  }
}

// Calls the right instance of a kernel's template.
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
}  // namespace avx512
}  // namespace fracskip
