// AVX-512 VNNI: integer convolutions of any shape. vpdpbusd multiplies four unsigned levels by four
// signed weights and adds them to 32 bits without saturating anything on the way: exact.
//
// Floats and elementwise passes are AVX2's.
#include <immintrin.h>

#include "kernels.hpp"

namespace fracskip {
namespace avx512 {
namespace {

// An intrinsic here makes GCC 12 copy and spill accumulators in the rolled loop.
static inline void dot(__m512i& sum, __m512i levels, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(levels), "v"(weights));
}

static inline __m512i spread(const std::uint8_t* from) {
  std::int32_t four;
  __builtin_memcpy(&four, from, sizeof four);
  return _mm512_set1_epi32(four);
}

struct Sums {
  __m512i levels;
  __m512 values;
};

template <Residual R, Output O>
static inline void emit(const ConvArgs& a, int h, int w, int channel, __m512i sum, Sums& sums) {
  __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(a.scale + channel));
  y = _mm512_add_ps(y, _mm512_loadu_ps(a.bias + channel));
  const std::ptrdiff_t from = h * a.residual_row + static_cast<std::ptrdiff_t>(w) * a.residual_pixel + channel;
  if (R == Residual::u8) {
    const std::uint8_t* r = static_cast<const std::uint8_t*>(a.residual) + from;
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(r));
    y = _mm512_add_ps(y, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
  } else if (R == Residual::f32) {
    y = _mm512_add_ps(y, _mm512_loadu_ps(static_cast<const float*>(a.residual) + from));
  }
  const std::ptrdiff_t to = h * a.out_row + static_cast<std::ptrdiff_t>(w) * a.out_pixel + channel;
  if (O == Output::u8) {
    const __m512 clamped = _mm512_max_ps(_mm512_min_ps(y, _mm512_set1_ps(a.top)), _mm512_setzero_ps());
    const __m512i q = _mm512_cvtps_epi32(clamped);
    std::uint8_t* out = static_cast<std::uint8_t*>(a.out) + to;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(q));
    sums.levels = _mm512_add_epi32(sums.levels, q);
  } else {
    if (a.relu) y = _mm512_max_ps(y, _mm512_setzero_ps());
    _mm512_storeu_ps(static_cast<float*>(a.out) + to, y);
    sums.values = _mm512_add_ps(sums.values, y);
  }
}

// `Pixels` pixels of a row by `Blocks` blocks of 16 output channels.
// Weights: [block][kernel_h][kernel_w][fours of in_channels][kBlock][4].
template <int Pixels, int Blocks, Residual R, Output O>
static inline void row_piece(const ConvArgs& a, int h, int w, int block, Sums* sums) {
  const int fours = (a.in_channels + 3) / 4;
  const std::ptrdiff_t block_size = static_cast<std::ptrdiff_t>(a.kernel_h) * a.kernel_w * fours * kBlock * 4;
  const std::int8_t* weight = static_cast<const std::int8_t*>(a.weights) + block * block_size;
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(a.stride_w) * a.in_pixel;
  __m512i sum[Pixels][Blocks];
#pragma GCC unroll 16
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) sum[p][b] = _mm512_setzero_si512();
  }
  for (int y = 0; y < a.kernel_h; ++y) {
    for (int x = 0; x < a.kernel_w; ++x) {
      const std::uint8_t* in = static_cast<const std::uint8_t*>(a.in) + (h * a.stride_h + y) * a.in_row +
                               (static_cast<std::ptrdiff_t>(w) * a.stride_w + x) * a.in_pixel;
      for (int g = 0; g < fours; ++g, weight += kBlock * 4, in += 4) {
        __m512i weights[Blocks];
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) weights[b] = _mm512_load_si512(weight + b * block_size);
#pragma GCC unroll 16
        for (int p = 0; p < Pixels; ++p) {
          const __m512i levels = spread(in + p * step);
#pragma GCC unroll 2
          for (int b = 0; b < Blocks; ++b) dot(sum[p][b], levels, weights[b]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) emit<R, O>(a, h, w + p, (block + b) * kBlock, sum[p][b], sums[b]);
  }
}

template <int Blocks, Residual R, Output O>
static inline void blocks_of_channels(const ConvArgs& a, int block) {
  constexpr int kWide = Blocks == 1 ? 16 : 8;
  Sums sums[Blocks];
  for (Sums& s : sums) s = {_mm512_setzero_si512(), _mm512_setzero_ps()};
  for (int h = 0; h < a.out_h; ++h) {
    int w = 0;
    for (; w + kWide <= a.out_w; w += kWide) row_piece<kWide, Blocks, R, O>(a, h, w, block, sums);
    if (a.out_w - w >= 8) {
      row_piece<8, Blocks, R, O>(a, h, w, block, sums);
      w += 8;
    }
    if (a.out_w - w >= 4) {
      row_piece<4, Blocks, R, O>(a, h, w, block, sums);
      w += 4;
    }
    for (; w < a.out_w; ++w) row_piece<1, Blocks, R, O>(a, h, w, block, sums);
  }
  if (!a.sums) return;
  for (int b = 0; b < Blocks; ++b) {
    const int channel = (block + b) * kBlock;
    if (O == Output::u8) {
      std::uint32_t* to = static_cast<std::uint32_t*>(a.sums) + channel;
      _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), sums[b].levels));
    } else {
      float* to = static_cast<float*>(a.sums) + channel;
      _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums[b].values));
    }
  }
}

template <Residual R, Output O>
static void direct(const ConvArgs& a) {
  int block = 0;
  for (; block + 2 <= a.out_blocks; block += 2) blocks_of_channels<2, R, O>(a, block);
  if (block < a.out_blocks) blocks_of_channels<1, R, O>(a, block);
}

static void conv_int(const ConvArgs& a) {
  if (a.out_type == Output::u8) {
    if (a.residual_type == Residual::none) return direct<Residual::none, Output::u8>(a);
    if (a.residual_type == Residual::u8) return direct<Residual::u8, Output::u8>(a);
    return direct<Residual::f32, Output::u8>(a);
  }
  if (a.residual_type == Residual::none) return direct<Residual::none, Output::f32>(a);
  if (a.residual_type == Residual::u8) return direct<Residual::u8, Output::f32>(a);
  return direct<Residual::f32, Output::f32>(a);
}

}  // namespace

// AVX2's functions, through its set: which file is compiled how stays its own affair.
static void conv_float(const ConvArgs& a) { kAvx2Kernels.conv_float(a); }
static void winograd_float(const ConvArgs& a) { kAvx2Kernels.winograd_float(a); }
static void u8_to_u8(const MapArgs& a) { kAvx2Kernels.u8_to_u8(a); }
static void f32_to_u8(const MapArgs& a) { kAvx2Kernels.f32_to_u8(a); }
static void u8_to_f32(const MapArgs& a) { kAvx2Kernels.u8_to_f32(a); }
static void f32_to_f32(const MapArgs& a) { kAvx2Kernels.f32_to_f32(a); }
static int gate(const GateArgs& a) { return kAvx2Kernels.gate(a); }

}  // namespace avx512

const KernelSet kAvx512Kernels = {
    "avx512_vnni", avx512::conv_int, avx512::conv_float, nullptr, avx512::winograd_float, 4, false,
    avx512::u8_to_u8, avx512::f32_to_u8, avx512::u8_to_f32, avx512::f32_to_f32, avx512::gate,
};

}  // namespace fracskip
