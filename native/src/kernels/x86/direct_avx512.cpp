// AVX-512 VNNI: direct convolutions of any shape. vpdpbusd multiplies four unsigned levels by four
// signed weights and adds them to 32 bits without saturating anything on the way: exact.
//
// Winograd's algorithm on floats is AVX2's.
#include <immintrin.h>

#include "kernels/x86/epilogue_avx512.hpp"
#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace avx512 {
namespace {

// Weights: [block][kernel_h][kernel_w][groups of in_channels][kBlock][group].
// Intrinsics in `add` would make GCC 12 copy and spill accumulators in the rolled loop.
struct IntMath {
  using In = std::uint8_t;
  using Weight = std::int8_t;
  using Sum = __m512i;
  static constexpr int kGroup = 4;
  static Sum zero() { return _mm512_setzero_si512(); }
  static Sum load(const Weight* from) { return _mm512_load_si512(from); }
  static Sum spread(const In* from) {
    std::int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static void add(Sum& sum, Sum levels, Sum weights) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(levels), "v"(weights)); }
};

struct FloatMath {
  using In = float;
  using Weight = float;
  using Sum = __m512;
  static constexpr int kGroup = 1;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum load(const Weight* from) { return _mm512_load_ps(from); }
  static Sum spread(const In* from) { return _mm512_set1_ps(*from); }
  static void add(Sum& sum, Sum values, Sum weights) { asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(values), "v"(weights)); }
};

// `Taps` neighbouring taps of a row and a group of their channels: each of the pixels they reach is
// spread once and multiplied with all of them.
template <class Math, int Taps, int Pixels, int Blocks>
__attribute__((always_inline)) static inline void add_taps(typename Math::Sum (&sum)[Pixels][Blocks], const typename Math::In* in,
                                                           std::ptrdiff_t step, const typename Math::Weight* weight,
                                                           std::ptrdiff_t tap_size, std::ptrdiff_t block_size) {
  typename Math::Sum weights[Taps][Blocks];
#pragma GCC unroll 3
  for (int x = 0; x < Taps; ++x) {
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) weights[x][b] = Math::load(weight + x * tap_size + b * block_size);
  }
#pragma GCC unroll 18
  for (int q = 0; q < Pixels + Taps - 1; ++q) {
    const typename Math::Sum values = Math::spread(in + q * step);
#pragma GCC unroll 3
    for (int x = 0; x < Taps; ++x) {
      const int p = q - x;
      if (p < 0 || p >= Pixels) continue;
#pragma GCC unroll 2
      for (int b = 0; b < Blocks; ++b) Math::add(sum[p][b], values, weights[x][b]);
    }
  }
}

// `Pixels` pixels of a row by `Blocks` blocks of 16 output channels; `Taps` divides the kernel's width,
// and is 1 where the stride is not.
template <class Math, int Taps, int Pixels, int Blocks, Residual R, Result O>
static inline void row_piece(const ConvArgs& a, int h, int w, int block, Sums* sums) {
  constexpr int kGroupSize = kBlock * Math::kGroup;
  const int groups = (a.in_channels + Math::kGroup - 1) / Math::kGroup;
  const std::ptrdiff_t tap_size = static_cast<std::ptrdiff_t>(groups) * kGroupSize;
  const std::ptrdiff_t block_size = a.kernel_h * a.kernel_w * tap_size;
  const auto* weight = static_cast<const typename Math::Weight*>(a.weights) + block * block_size;
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(a.stride_w) * a.in_pixel;
  typename Math::Sum sum[Pixels][Blocks];
#pragma GCC unroll 16
  for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) sum[p][b] = Math::zero();
  }
  for (int y = 0; y < a.kernel_h; ++y) {
    const auto* row = static_cast<const typename Math::In*>(a.in) + (h * a.stride_h + y) * a.in_row + w * step;
    for (int x = 0; x < a.kernel_w; x += Taps, weight += Taps * tap_size) {
      const auto* in = row + static_cast<std::ptrdiff_t>(x) * a.in_pixel;
      for (int g = 0; g < groups; ++g) {
        add_taps<Math, Taps>(sum, in + g * Math::kGroup, step, weight + g * kGroupSize, tap_size, block_size);
      }
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < Blocks; ++b) {
    const Target target(a, block + b, h, w);
    if (Pixels == 1) finish<1, R, O>(target, 0, {sum[0][b], sum[0][b], sum[0][b], sum[0][b]}, sums[b]);
    constexpr int kWhole = Pixels / kTogether * kTogether;
#pragma GCC unroll 4
    for (int p = 0; p < kWhole; p += kTogether) {
      finish<kTogether, R, O>(target, p, {sum[p][b], sum[p + 1][b], sum[p + 2][b], sum[p + 3][b]}, sums[b]);
    }
    if constexpr (Pixels - kWhole == 3) {
      finish<3, R, O>(target, kWhole, {sum[kWhole][b], sum[kWhole + 1][b], sum[kWhole + 2][b], sum[kWhole + 2][b]}, sums[b]);
    }
  }
}

template <class Math, int Taps, int Blocks, Residual R, Result O>
static inline void blocks_of_channels(const ConvArgs& a, int block) {
  constexpr int kWide = Blocks == 1 ? 16 : 8, kSeven = 7;
  const bool sevens = a.out_w % kSeven == 0 && a.out_w % kWide != 0;  // rows of 7 and 14, that most networks end with
  Sums sums[Blocks];
  for (int h = 0; h < a.out_h; ++h) {
    int w = 0;
    if (sevens) {
      for (; w < a.out_w; w += kSeven) row_piece<Math, Taps, kSeven, Blocks, R, O>(a, h, w, block, sums);
    }
    for (; w + kWide <= a.out_w; w += kWide) row_piece<Math, Taps, kWide, Blocks, R, O>(a, h, w, block, sums);
    for (; w + kTogether <= a.out_w; w += kTogether) row_piece<Math, Taps, kTogether, Blocks, R, O>(a, h, w, block, sums);
    for (; w < a.out_w; ++w) row_piece<Math, Taps, 1, Blocks, R, O>(a, h, w, block, sums);
  }
  for (int b = 0; b < Blocks; ++b) add_sums<O>(a, block + b, sums[b]);
}

template <class Math, int Taps, Residual R, Result O>
static void all_blocks(const ConvArgs& a) {
  int block = 0;
  for (; block + 2 <= a.out_blocks; block += 2) blocks_of_channels<Math, Taps, 2, R, O>(a, block);
  if (block < a.out_blocks) blocks_of_channels<Math, Taps, 1, R, O>(a, block);
}

template <Residual R, Result O>
struct DirectInt {
  static void run(const ConvArgs& a) {
    if (a.kernel_w == 3 && a.stride_w == 1) all_blocks<IntMath, 3, R, O>(a);
    else all_blocks<IntMath, 1, R, O>(a);
  }
};

template <Residual R, Result O>
struct DirectFloat {
  static void run(const ConvArgs& a) {
    // A stride of its own keeps pixels apart where a row of taps is one long run of channels.
    if (a.in_pixel != a.in_channels) return all_blocks<FloatMath, 1, R, O>(a);
    ConvArgs runs = a;
    runs.stride_w = 1;
    runs.in_pixel = a.stride_w * a.in_pixel;
    runs.in_channels = a.kernel_w * a.in_channels;
    runs.kernel_w = 1;
    all_blocks<FloatMath, 1, R, O>(runs);
  }
};

static void conv_int(const ConvArgs& a) { dispatch<DirectInt, true>(a); }
static void conv_float(const ConvArgs& a) { dispatch<DirectFloat>(a); }

}  // namespace

// AVX2's functions, through its set: which file is compiled how stays its own affair.
static void winograd_float(const ConvArgs& a) { kAvx2Kernels.winograd_float(a); }
static int gate(const GateArgs& a) { return kAvx2Kernels.gate(a); }

}  // namespace avx512

constexpr KernelSet kAvx512Kernels = [] {
  KernelSet set;
  set.name = "avx512_vnni";
  set.conv_int = avx512::conv_int;
  set.conv_float = avx512::conv_float;
  set.winograd_float = avx512::winograd_float;
  set.winograd_2x2_wide = avx512::winograd_2x2_wide;
  set.winograd_4x2_wide = avx512::winograd_4x2_wide;
  set.int_group = 4;
  set.gate = avx512::gate;
  set.values = &kAvx512Values;
  set.resize = &kAvx2Resize;
  set.peaks = &kAvx512Peaks;
  return set;
}();

}  // namespace fracskip
