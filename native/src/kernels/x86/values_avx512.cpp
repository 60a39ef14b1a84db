// Values with AVX-512, and 3x3 depthwise convolutions of levels with VNNI.
#include <immintrin.h>

#include "kernels/x86/epilogue_avx512.hpp"
#include "kernels/common/kernels.hpp"

#define FRACSKIP_VALUES values_avx512

namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

using Lanes = __m512;
constexpr int kLanes = 16;

inline Lanes load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Lanes x) { _mm512_storeu_ps(to, x); }
inline Lanes all(float x) { return _mm512_set1_ps(x); }
inline Lanes from_levels(const std::uint8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void to_levels(std::uint8_t* to, Lanes x) {  // of 0 to 255
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
inline Lanes times_plus(Lanes x, Lanes y, Lanes z) { return _mm512_fmadd_ps(x, y, z); }
inline Lanes largest(Lanes x, Lanes y) { return _mm512_max_ps(x, y); }
inline Lanes smallest(Lanes x, Lanes y) { return _mm512_min_ps(x, y); }
inline Lanes root(Lanes x) { return _mm512_sqrt_ps(x); }
inline Lanes rounded(Lanes x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Lanes two_to(Lanes n) {  // of whole numbers from -126 to 127
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline Lanes where_less(Lanes x, Lanes y, Lanes then, Lanes otherwise) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), otherwise, then);
}

}  // namespace
}  // namespace FRACSKIP_VALUES
}  // namespace fracskip

#include "kernels/common/values.inl"

namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

using avx512::kTogether;

// Four neighbouring pixels, side by side in each channel's 32 bits.
__attribute__((always_inline)) inline __m512i four(const std::uint8_t* in, std::ptrdiff_t pixel) {
  const auto at = [=](int p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + p * pixel)); };
  __m512i x = _mm512_castsi128_si512(at(0));
  x = _mm512_inserti32x4(x, at(1), 1);
  x = _mm512_inserti32x4(x, at(2), 2);
  x = _mm512_inserti32x4(x, at(3), 3);
  x = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
  return _mm512_shuffle_epi8(x, _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
}

// Three taps of a row, one in each of the lowest bytes.
inline __m512i three(const float* weights, int channels) {
  const auto tap = [=](int x) { return _mm512_and_si512(_mm512_cvtps_epi32(_mm512_loadu_ps(weights + x * channels)), _mm512_set1_epi32(255)); };
  return _mm512_or_si512(_mm512_or_si512(tap(0), _mm512_slli_epi32(tap(1), 8)), _mm512_slli_epi32(tap(2), 16));
}

// An intrinsic would make GCC 12 copy and spill accumulators in the rolled loop.
inline void add(__m512i& sum, __m512i levels, __m512i weights) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(levels), "v"(weights)); }

// Sums of four outputs of a row, which begin at the four pixels in `now` and then go on in others: the taps stay beside the
// pixels that they belong to, shifted, and what they reach beyond is in the next four.
template <int Stride>
struct Row {
  __m512i whole, by1, by2, by3, rest1, rest2;  // the taps, shifted up by pixels, and what is then left of them

  void take(__m512i taps) {
    whole = taps;
    by1 = _mm512_slli_epi32(taps, 8);
    by2 = _mm512_slli_epi32(taps, 16);
    by3 = _mm512_slli_epi32(taps, 24);
    rest1 = _mm512_srli_epi32(taps, 16);
    rest2 = _mm512_srli_epi32(taps, 8);
  }

  __attribute__((always_inline)) void run(__m512i (&sum)[kTogether], __m512i& now, const std::uint8_t* in, std::ptrdiff_t pixel) const {
    const __m512i next = four(in + 4 * pixel, pixel);
    add(sum[0], now, whole);
    if (Stride == 1) {
      add(sum[1], now, by1);
      add(sum[2], now, by2);
      add(sum[3], now, by3);
      add(sum[2], next, rest1);
      add(sum[3], next, rest2);
      now = next;
    } else {
      add(sum[1], now, by2);
      add(sum[2], next, whole);
      add(sum[3], next, by2);
      add(sum[1], next, rest1);
      now = four(in + 8 * pixel, pixel);
      add(sum[3], now, rest1);
    }
  }
};

template <int Stride, class Out>
void depthwise_3x3(const DepthwiseArgs& a) {
  constexpr int kTaps = 3;
  const std::ptrdiff_t pixel = a.in_pixel;
  for (int c = 0; c < a.channels; c += kBlock) {
    Row<Stride> rows[kTaps];
    for (int y = 0; y < kTaps; ++y) rows[y].take(three(a.weights + y * kTaps * a.channels + c, a.channels));
    const __m512 scale = load(a.scale + c), bias = load(a.bias + c);
    for (int h = 0; h < a.out_h; ++h) {
      const std::uint8_t* in = static_cast<const std::uint8_t*>(a.in) + h * a.stride_h * a.in_row + c;
      Out* out = static_cast<Out*>(a.out) + h * a.out_row + c;
      __m512i now[kTaps] = {four(in, pixel), four(in + a.in_row, pixel), four(in + 2 * a.in_row, pixel)};
      for (int w = 0; w < a.out_w; w += kTogether, in += kTogether * Stride * pixel, out += kTogether * static_cast<std::ptrdiff_t>(a.out_pixel)) {
        __m512i sum[kTogether] = {};
#pragma GCC unroll 3
        for (int y = 0; y < kTaps; ++y) rows[y].run(sum, now[y], in + y * a.in_row, pixel);
        __m512 y[kTogether];
#pragma GCC unroll 4
        for (int p = 0; p < kTogether; ++p) y[p] = _mm512_cvtepi32_ps(sum[p]) * scale + bias;
        const int left = a.out_w - w;
        if constexpr (sizeof(Out) == 1) {
          const __m512i levels = avx512::by_pixels(avx512::levels_of<Result::levels>(y, a.top));
          const auto to = [=](int p) { return reinterpret_cast<__m128i*>(out + p * a.out_pixel); };
          _mm_storeu_si128(to(0), _mm512_castsi512_si128(levels));
          if (left > 1) _mm_storeu_si128(to(1), _mm512_extracti32x4_epi32(levels, 1));
          if (left > 2) _mm_storeu_si128(to(2), _mm512_extracti32x4_epi32(levels, 2));
          if (left > 3) _mm_storeu_si128(to(3), _mm512_extracti32x4_epi32(levels, 3));
        } else {
          for (int p = 0; p < kTogether && p < left; ++p) {
            if (a.relu) y[p] = smallest(largest(y[p], all(0.f)), all(a.most));
            store(out + p * a.out_pixel, y[p]);
          }
        }
      }
    }
  }
}

template <class Out>
void depthwise_levels(const DepthwiseArgs& a) {
  const bool plain = a.kernel_h == 3 && a.kernel_w == 3 && a.dilation_h == 1 && a.dilation_w == 1;
  if (plain && a.stride_w == 1) return depthwise_3x3<1, Out>(a);
  if (plain && a.stride_w == 2) return depthwise_3x3<2, Out>(a);
  depthwise<std::uint8_t, Out>(a);
}

// AVX2's, through its set.
void relevel_short(const StageArgs& a) { kAvx2Values.relevel_short(a); }

}  // namespace
}  // namespace FRACSKIP_VALUES

constexpr ValueKernels kAvx512Values = [] {
  ValueKernels kernels = FRACSKIP_VALUES::value_kernels(FRACSKIP_VALUES::depthwise_levels<float>, FRACSKIP_VALUES::depthwise_levels<std::uint8_t>);
  kernels.relevel_short = FRACSKIP_VALUES::relevel_short;
  return kernels;
}();

}  // namespace fracskip
