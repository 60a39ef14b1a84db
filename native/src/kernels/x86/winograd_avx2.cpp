// AVX2: 3x3 convolutions of stride 1 by Winograd's algorithm F(4x4, 3x3) (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", CVPR 2016): 36 products for 16 outputs, not 144.
//
// For integers it is exact. With the fractions of the weights' transform left out (rows
// [1 0 0], [1 1 1], [1 -1 1], [1 2 4], [1 -2 4], [0 0 1]) everything is an integer: transformed
// levels reach 68 * 255 and transformed weights 49 * 127, so both fit 16 bits and vpmaddwd. What was
// left out returns in the output's transform, where each output comes out multiplied by
// f_i f_j = 9 * 2^k, f = (24, 12, 6, 6). All sums are taken modulo 2^32, a ring, so overflow on the
// way does no harm: times the inverse of 9 the value is 2^k * acc modulo 2^32, and an arithmetic
// shift by k gives acc whenever |acc| < 2^25, which whoever chooses this kernel has proved.
#include <immintrin.h>

#include "kernels/x86/epilogue_avx2.hpp"
#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace avx2 {
namespace {

using ShortLanes = std::int16_t __attribute__((vector_size(32), may_alias));

template <class T>
static inline T twice(T x) { return x + x; }
static inline ShortLanes fourfold(ShortLanes x) { return x << 2; }
static inline FloatLanes fourfold(FloatLanes x) { return x * 4.f; }
static inline IntLanes fourfold(IntLanes x) { return x << 2; }

// Bᵀ d: six inputs to six.
template <class T>
static inline void transform_in(T d0, T d1, T d2, T d3, T d4, T d5, T* out, int stride) {
  const T c = d4 - d2, e = twice(d3 - d1);
  const T a = d4 - fourfold(d2), b = d3 - fourfold(d1);
  out[0] = fourfold(d0 - d2) + c;
  out[stride] = a + b;
  out[2 * stride] = a - b;
  out[3 * stride] = c + e;
  out[4 * stride] = c - e;
  out[5 * stride] = d5 - d3 - twice(e);
}

// Aᵀ m: six products to four outputs; integers carry the factors (24, 12, 6, 6).
static inline void transform_out(const IntLanes* m, int stride, IntLanes* y) {
  const IntLanes p = m[stride] + m[2 * stride], q = m[stride] - m[2 * stride];
  const IntLanes r = m[3 * stride] + m[4 * stride], s = m[3 * stride] - m[4 * stride];
  y[0] = twice(fourfold(m[0]) - twice(p) - m[0]) + r;  // 6 m0 - 4 p + r
  y[1] = s - twice(q);
  y[2] = r - p;
  const IntLanes last = m[5 * stride];
  y[3] = twice(s + twice(last) + last - q) + q;  // 2 s - q + 6 m5
}
static inline void transform_out(const FloatLanes* m, int stride, FloatLanes* y) {
  const FloatLanes p = m[stride] + m[2 * stride], q = m[stride] - m[2 * stride];
  const FloatLanes r = m[3 * stride] + m[4 * stride], s = m[3 * stride] - m[4 * stride];
  y[0] = m[0] + p + r;
  y[1] = q + twice(s);
  y[2] = p + fourfold(r);
  y[3] = q + twice(fourfold(s)) + m[5 * stride];
}

struct IntMath {
  using In = std::uint8_t;
  using Element = std::int16_t;  // transformed input and weights
  using In1 = ShortLanes;
  using Out1 = IntLanes;
  static constexpr int kLanes = 16;
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
  static constexpr int kLanes = 8;
  static constexpr int kGroup = 1;
  static In1 load(const In* from) { return _mm256_loadu_ps(from); }
  static Out1 weight(const Element* from) { return _mm256_load_ps(from); }
  static Out1 spread(const Element* from) { return _mm256_broadcast_ss(from); }
  static Out1 add(Out1 sum, Out1 value, Out1 weight) { return _mm256_fmadd_ps(value, weight, sum); }
  template <int I, int J>
  static __m256 unscale(Out1 y) { return y; }
};

// One tile's input, all channels: v[position][tile][channel].
template <class Math>
static inline void input_tile(const ConvArgs& a, const typename Math::In* in, int channels,
                              typename Math::Element* v, std::ptrdiff_t position) {
  using T = typename Math::In1;
  for (int c = 0; c < channels; c += Math::kLanes) {
    T rows[kTileIn][kTileIn];  // Bᵀ d, row by row
#pragma GCC unroll 6
    for (int j = 0; j < kTileIn; ++j) {
      const typename Math::In* d = in + static_cast<std::ptrdiff_t>(j) * a.in_pixel + c;
      transform_in<T>(Math::load(d), Math::load(d + a.in_row), Math::load(d + 2 * a.in_row),
                      Math::load(d + 3 * a.in_row), Math::load(d + 4 * a.in_row),
                      Math::load(d + 5 * a.in_row), &rows[0][j], kTileIn);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kTileIn; ++i) {
      T out[kTileIn];
      transform_in<T>(rows[i][0], rows[i][1], rows[i][2], rows[i][3], rows[i][4], rows[i][5], out, 1);
      for (int j = 0; j < kTileIn; ++j) {
        *reinterpret_cast<T*>(v + (i * kTileIn + j) * position + c) = out[j];
      }
    }
  }
}

// Between positions, vectors of 32 bytes of m.
inline constexpr std::ptrdiff_t kMPosition = kTileGroup * 2 + kTilePad / 32;

// All positions' products for one block of 16 output channels, four tiles at a time:
// m[position][tile][kBlock]. Kept out of line, where its pointers stay in registers.
template <class Math>
__attribute__((noinline)) static void products(const typename Math::Element* v, std::ptrdiff_t channels,
                                               std::ptrdiff_t v_position, const typename Math::Element* u,
                                               int tiles, typename Math::Out1* m) {
  using T = typename Math::Out1;
  using Element = typename Math::Element;
  constexpr std::ptrdiff_t kHalf = 8 * Math::kGroup;
  const std::ptrdiff_t size = channels * kBlock;
  for (int position = 0; position < kTileArea; ++position, u += size, v += v_position, m += kMPosition) {
    const Element* const end = u + size;
    for (int t = 0; t < tiles; t += 4) {
      T sum[4][2] = {};
      const Element* x = v + t * channels;
#pragma GCC unroll 2
      for (const Element* w = u; w != end; w += 2 * kHalf, x += Math::kGroup) {
        const T first = Math::weight(w), second = Math::weight(w + kHalf);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const T value = Math::spread(x + i * channels);
          sum[i][0] = Math::add(sum[i][0], value, first);
          sum[i][1] = Math::add(sum[i][1], value, second);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        m[(t + i) * 2] = sum[i][0];
        m[(t + i) * 2 + 1] = sum[i][1];
      }
    }
  }
}

template <class Math, Residual R, Element O, int I>
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

template <class Math, Residual R, Element O>
static inline void output_tile(const ConvArgs& a, const typename Math::Out1* m, std::ptrdiff_t position,
                               int h, int w, int channel, Sums& sums) {
  using T = typename Math::Out1;
  T y[2][kTile][kTile];
  for (int half = 0; half < 2; ++half) {
    T columns[kTileIn][kTile];
#pragma GCC unroll 6
    for (int j = 0; j < kTileIn; ++j) {
      transform_out(m + half + j * position, static_cast<int>(kTileIn * position), columns[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) transform_out(&columns[0][i], kTile, y[half][i]);
  }
  output_row<Math, R, O, 0>(a, h, w, channel, y, sums);
  output_row<Math, R, O, 1>(a, h, w, channel, y, sums);
  output_row<Math, R, O, 2>(a, h, w, channel, y, sums);
  output_row<Math, R, O, 3>(a, h, w, channel, y, sums);
}

// Weights: [block][position][groups of in_channels][kBlock][kGroup].
template <class Math, Residual R, Element O>
static void winograd(const ConvArgs& a) {
  using Element = typename Math::Element;
  using Out1 = typename Math::Out1;
  const int channels = round_up(a.in_channels, kBlock);
  const int across = (a.out_w + kTile - 1) / kTile, down = (a.out_h + kTile - 1) / kTile;
  const int tiles = across * down;
  const std::ptrdiff_t v_position = static_cast<std::ptrdiff_t>(kTileGroup) * channels + (channels > 16 ? kTilePad / static_cast<int>(sizeof(Element)) : 0);
  Element* v = static_cast<Element*>(a.scratch);
  Out1* m = reinterpret_cast<Out1*>(v + kTileArea * v_position);
  for (int begin = 0; begin < tiles; begin += kTileGroup) {
    const int count = tiles - begin < kTileGroup ? tiles - begin : kTileGroup;
    for (int t = 0; t < count; ++t) {
      const int h = (begin + t) / across * kTile, w = (begin + t) % across * kTile;
      const typename Math::In* in = static_cast<const typename Math::In*>(a.in) + h * a.in_row +
                                    static_cast<std::ptrdiff_t>(w) * a.in_pixel;
      input_tile<Math>(a, in, channels, v + t * channels, v_position);
    }
    const Element* u = static_cast<const Element*>(a.weights);
    for (int block = 0; block < a.out_blocks; ++block) {
      products<Math>(v, channels, v_position, u, count, m);
      u += kTileArea * channels * kBlock;
      Sums sums;
      sums.clear();
      for (int t = 0; t < count; ++t) {
        const int h = (begin + t) / across * kTile, w = (begin + t) % across * kTile;
        output_tile<Math, R, O>(a, m + t * 2, kMPosition, h, w, block * kBlock, sums);
      }
      add_sums(a, block * kBlock, sums);
    }
  }
}

template <Residual R, Element O>
struct WinogradInt {
  static void run(const ConvArgs& a) { winograd<IntMath, R, O>(a); }
};
template <Residual R, Element O>
struct WinogradFloat {
  static void run(const ConvArgs& a) { winograd<FloatMath, R, O>(a); }
};

}  // namespace

void winograd_int(const ConvArgs& a) { dispatch<WinogradInt>(a); }
void winograd_float(const ConvArgs& a) { dispatch<WinogradFloat>(a); }

}  // namespace avx2
}  // namespace fracskip
