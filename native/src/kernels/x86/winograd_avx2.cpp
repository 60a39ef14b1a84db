// AVX2: 3x3 convolutions of stride 1 by Winograd's algorithm (winograd.inl), integers by vpmaddwd.
#include <immintrin.h>

#include "kernels/x86/epilogue_avx2.hpp"
#include "kernels/common/kernels.hpp"

#define FRACSKIP_WINOGRAD avx2

namespace fracskip {
namespace avx2 {
namespace {

using ShortLanes = std::int16_t __attribute__((vector_size(32), may_alias));

struct IntMath {
  using In = std::uint8_t;
  using Element = std::int16_t;  // transformed input and weights
  using In1 = ShortLanes;
  using Out1 = IntLanes;
  static constexpr int kLanes = 16, kParts = 2;
  static constexpr int kGroup = 2;  // input channels a product takes at once
  static In1 load(const In* from) {
    return reinterpret_cast<In1>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static Out1 weight(const Element* from) { return *reinterpret_cast<const Out1*>(from); }
  static Out1 spread(const Element* from) {
    std::int32_t pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return reinterpret_cast<Out1>(_mm256_set1_epi32(pair));
  }
  static Out1 add(Out1 sum, Out1 value, Out1 weight) {
    return sum + reinterpret_cast<Out1>(_mm256_madd_epi16(reinterpret_cast<__m256i>(value), reinterpret_cast<__m256i>(weight)));
  }
  template <int I, int J>
  static __m256i unscale(Out1 y) {
    constexpr int kShifts[kTile] = {3, 2, 1, 1};
    const __m256i inverse_of_9 = _mm256_set1_epi32(0x38E38E39);
    const __m256i scaled = _mm256_mullo_epi32(reinterpret_cast<__m256i>(y), inverse_of_9);
    return _mm256_srai_epi32(scaled, kShifts[I] + kShifts[J]);
  }
};

struct FloatMath {
  using In = float;
  using Element = float;
  using In1 = FloatLanes;
  using Out1 = FloatLanes;
  static constexpr int kLanes = 8, kParts = 2;
  static constexpr int kGroup = 1;
  static In1 load(const In* from) { return _mm256_loadu_ps(from); }
  static Out1 weight(const Element* from) { return _mm256_load_ps(from); }
  static Out1 spread(const Element* from) { return _mm256_broadcast_ss(from); }
  static Out1 add(Out1 sum, Out1 value, Out1 weight) { return _mm256_fmadd_ps(value, weight, sum); }
  template <int I, int J>
  static __m256 unscale(Out1 y) { return y; }
};

// Four tiles' products with the weights of a position and a block, channel after channel.
template <class Math>
__attribute__((always_inline)) static inline void multiply_tiles(const typename Math::Element* x, std::ptrdiff_t channels,
                                                                 const typename Math::Element* w, const typename Math::Element* end,
                                                                 typename Math::Out1 (&sum)[4][2]) {
  using T = typename Math::Out1;
  constexpr std::ptrdiff_t kHalf = 8 * Math::kGroup;
#pragma GCC unroll 2
  for (; w != end; w += 2 * kHalf, x += Math::kGroup) {
    const T first = Math::weight(w), second = Math::weight(w + kHalf);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const T value = Math::spread(x + i * channels);
      sum[i][0] = Math::add(sum[i][0], value, first);
      sum[i][1] = Math::add(sum[i][1], value, second);
    }
  }
}

template <class Math, Residual R, auto O, int I>
__attribute__((always_inline)) static inline void output_row(const ConvArgs& a, int h, int w, int channel,
                              const typename Math::Out1 (*y)[kTile][kTile], Sums& sums) {
  if (h + I >= a.out_h) return;
  __m256 first[2][2] = {
      {finish(a, channel, Math::template unscale<I, 0>(y[0][I][0])), finish(a, channel + 8, Math::template unscale<I, 0>(y[1][I][0]))},
      {finish(a, channel, Math::template unscale<I, 1>(y[0][I][1])), finish(a, channel + 8, Math::template unscale<I, 1>(y[1][I][1]))}};
  emit<R, O>(a, h + I, w, channel, w + 1 < a.out_w, first, sums);
  if (w + 2 >= a.out_w) return;
  __m256 second[2][2] = {
      {finish(a, channel, Math::template unscale<I, 2>(y[0][I][2])), finish(a, channel + 8, Math::template unscale<I, 2>(y[1][I][2]))},
      {finish(a, channel, Math::template unscale<I, 3>(y[0][I][3])), finish(a, channel + 8, Math::template unscale<I, 3>(y[1][I][3]))}};
  emit<R, O>(a, h + I, w + 2, channel, w + 3 < a.out_w, second, sums);
}

}  // namespace
}  // namespace avx2
}  // namespace fracskip

#include "kernels/common/winograd.inl"

namespace fracskip {
namespace avx2 {
namespace {

template <Residual R, Result O>
struct WinogradInt {
  static void run(const ConvArgs& a) { winograd<IntMath, R, O>(a); }
};
template <Residual R, Result O>
struct WinogradFloat {
  static void run(const ConvArgs& a) { winograd<FloatMath, R, O>(a); }
};

}  // namespace

void winograd_int(const ConvArgs& a) { dispatch<WinogradInt, true>(a); }
void winograd_float(const ConvArgs& a) { dispatch<WinogradFloat>(a); }

}  // namespace avx2
}  // namespace fracskip
