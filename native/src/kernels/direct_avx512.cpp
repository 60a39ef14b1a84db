// AVX-512 VNNI: integer convolutions of any shape. vpdpbusd multiplies four unsigned levels by four
// signed weights and adds them to 32 bits without saturating anything on the way: exact.
//
// Floats and elementwise passes are AVX2's.
#include <immintrin.h>

#include "epilogue_avx512.hpp"
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

// `Taps` neighbouring taps of a row and four of their channels: each of the pixels they reach is spread
// once and multiplied with all of them.
template <int Taps, int Pixels, int Blocks>
__attribute__((always_inline)) static inline void add_taps(__m512i (&sum)[Pixels][Blocks], const std::uint8_t* in, std::ptrdiff_t step,
                                                           const std::int8_t* weight, std::ptrdiff_t tap_size, std::ptrdiff_t block_size) {
  __m512i weights[Taps][Blocks];
#pragma GCC unroll 3
  for (int x = 0; x < Taps; ++x) {
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) weights[x][b] = _mm512_load_si512(weight + x * tap_size + b * block_size);
  }
#pragma GCC unroll 18
  for (int q = 0; q < Pixels + Taps - 1; ++q) {
    const __m512i levels = spread(in + q * step);
#pragma GCC unroll 3
    for (int x = 0; x < Taps; ++x) {
      const int p = q - x;
      if (p < 0 || p >= Pixels) continue;
#pragma GCC unroll 2
      for (int b = 0; b < Blocks; ++b) dot(sum[p][b], levels, weights[x][b]);
    }
  }
}

// `Pixels` pixels of a row by `Blocks` blocks of 16 output channels; `Taps` divides the kernel's width,
// and is 1 where the stride is not.
// Weights: [block][kernel_h][kernel_w][fours of in_channels][kBlock][4].
template <int Taps, int Pixels, int Blocks, Residual R, Output O>
static inline void row_piece(const ConvArgs& a, int h, int w, int block, Sums* sums) {
  const int fours = (a.in_channels + 3) / 4;
  const std::ptrdiff_t tap_size = static_cast<std::ptrdiff_t>(fours) * kBlock * 4;
  const std::ptrdiff_t block_size = a.kernel_h * a.kernel_w * tap_size;
  const std::int8_t* weight = static_cast<const std::int8_t*>(a.weights) + block * block_size;
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(a.stride_w) * a.in_pixel;
  __m512i sum[Pixels][Blocks];
#pragma GCC unroll 16
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) sum[p][b] = _mm512_setzero_si512();
  }
  for (int y = 0; y < a.kernel_h; ++y) {
    const std::uint8_t* row = static_cast<const std::uint8_t*>(a.in) + (h * a.stride_h + y) * a.in_row + w * step;
    for (int x = 0; x < a.kernel_w; x += Taps, weight += Taps * tap_size) {
      const std::uint8_t* in = row + static_cast<std::ptrdiff_t>(x) * a.in_pixel;
      for (int g = 0; g < fours; ++g) add_taps<Taps>(sum, in + 4 * g, step, weight + g * kBlock * 4, tap_size, block_size);
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < Blocks; ++b) {
    const Target target(a, block + b, h, w);
    if (Pixels == 1) finish<1, R, O>(target, 0, {sum[0][b], sum[0][b], sum[0][b], sum[0][b]}, sums[b]);
#pragma GCC unroll 4
    for (int p = 0; p + kTogether <= Pixels; p += kTogether) {
      finish<kTogether, R, O>(target, p, {sum[p][b], sum[p + 1][b], sum[p + 2][b], sum[p + 3][b]}, sums[b]);
    }
  }
}

template <int Taps, int Blocks, Residual R, Output O>
static inline void blocks_of_channels(const ConvArgs& a, int block) {
  constexpr int kWide = Blocks == 1 ? 16 : 8;
  Sums sums[Blocks];
  for (int h = 0; h < a.out_h; ++h) {
    int w = 0;
    for (; w + kWide <= a.out_w; w += kWide) row_piece<Taps, kWide, Blocks, R, O>(a, h, w, block, sums);
    for (; w + kTogether <= a.out_w; w += kTogether) row_piece<Taps, kTogether, Blocks, R, O>(a, h, w, block, sums);
    for (; w < a.out_w; ++w) row_piece<Taps, 1, Blocks, R, O>(a, h, w, block, sums);
  }
  for (int b = 0; b < Blocks; ++b) add_sums<O>(a, block + b, sums[b]);
}

template <Residual R, Output O>
struct Direct {
  template <int Taps>
  static void run_by(const ConvArgs& a) {
    int block = 0;
    for (; block + 2 <= a.out_blocks; block += 2) blocks_of_channels<Taps, 2, R, O>(a, block);
    if (block < a.out_blocks) blocks_of_channels<Taps, 1, R, O>(a, block);
  }
  static void run(const ConvArgs& a) {
    if (a.kernel_w == 3 && a.stride_w == 1) run_by<3>(a);
    else run_by<1>(a);
  }
};

static void conv_int(const ConvArgs& a) { dispatch<Direct>(a); }

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
    "avx512_vnni", avx512::conv_int, avx512::conv_float, nullptr, avx512::winograd_float, nullptr, 4, false,
    avx512::u8_to_u8, avx512::f32_to_u8, avx512::u8_to_f32, avx512::f32_to_f32, avx512::gate, nullptr, nullptr,
};

}  // namespace fracskip
