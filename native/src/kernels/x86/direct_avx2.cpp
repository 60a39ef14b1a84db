// AVX2: convolutions of any shape, the gate.
//
// vpmaddubsw takes 32 products of bytes and adds them up in pairs in 16 bits, where it saturates. With few bits
// sums of many pairs stay within 16 bits, so they are added up there and widened once a run. Else integers are
// widened beforehand and go through vpmaddwd, which takes 16 products and is always exact.
#include <immintrin.h>

#include "kernels/x86/epilogue_avx2.hpp"
#include "kernels/common/kernels.hpp"

#define FRACSKIP_GATE_NAMESPACE gate_avx2
#include "kernels/common/gate.inl"

namespace fracskip {
namespace avx2 {
namespace {

inline constexpr int kPixels = 4;

template <class Math>
using Block = typename Math::Sum[kPixels][2];  // sums of 16 channels of neighbouring pixels

template <class Math>
static inline const typename Math::In* tap_row(const ConvArgs& a, int step, int h, int w, int y) {
  return static_cast<const typename Math::In*>(a.in) + (h * a.stride_h + y) * a.in_row + static_cast<std::ptrdiff_t>(w) * step;
}

// What integer kernels share: a group of input channels is 32 bits.
template <class Level, class Signed>
struct Integers {
  using In = Level;
  using Weight = Signed;
  using Sum = __m256i;
  static constexpr int kGroup = 4 / sizeof(Level);
  static int groups(const ConvArgs& a) { return (a.in_channels + kGroup - 1) / kGroup; }
  static Sum zero() { return _mm256_setzero_si256(); }
  static Sum load(const Weight* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }
  static Sum spread(const In* from) {
    std::int32_t group;
    __builtin_memcpy(&group, from, sizeof group);
    return _mm256_set1_epi32(group);
  }
};

// Weights: [block][kernel_h][kernel_w][pairs of in_channels][kBlock][2], 16 bits; levels were widened beforehand.
struct IntMath : Integers<std::int16_t, std::int16_t> {
  static constexpr bool kInRuns = false;
  static Sum add(Sum sum, Sum value, Sum weight) { return _mm256_add_epi32(sum, _mm256_madd_epi16(value, weight)); }
};

// Weights: [block][kernel_h][kernel_w][fours of in_channels][kBlock][4], 8 bits; sums are of 16 bits.
struct NarrowMath : Integers<std::uint8_t, std::int8_t> {
  static constexpr bool kInRuns = true;
  static Sum add(Sum part, Sum value, Sum weight) { return _mm256_add_epi16(part, _mm256_maddubs_epi16(value, weight)); }
};

// Weights: [block][kernel_h][kernel_w][in_channels][kBlock].
struct FloatMath {
  using In = float;
  using Weight = float;
  using Sum = __m256;
  static constexpr int kGroup = 1;
  static constexpr bool kInRuns = false;
  static int groups(const ConvArgs& a) { return a.in_channels; }
  static Sum zero() { return _mm256_setzero_ps(); }
  static Sum load(const Weight* from) { return _mm256_load_ps(from); }
  static Sum spread(const In* from) { return _mm256_broadcast_ss(from); }
  static Sum add(Sum sum, Sum value, Sum weight) { return _mm256_fmadd_ps(value, weight, sum); }
};

// The sums of neighbouring pixels: one group of channels after the other.
template <class Math, int Pixels>
static inline void accumulate(const ConvArgs& a, int step, int h, int w, const typename Math::Weight* weight, Block<Math>& sum) {
  constexpr int kHalf = 8 * Math::kGroup;
  const int groups = Math::groups(a);
  for (int y = 0; y < a.kernel_h; ++y) {
    for (int x = 0; x < a.kernel_w; ++x) {
      const typename Math::In* in = tap_row<Math>(a, step, h, w, y) + static_cast<std::ptrdiff_t>(x) * a.in_pixel;
      for (int g = 0; g < groups; ++g, weight += 2 * kHalf, in += Math::kGroup) {
        const auto first = Math::load(weight), second = Math::load(weight + kHalf);
#pragma GCC unroll 4
        for (int p = 0; p < Pixels; ++p) {
          const auto value = Math::spread(in + p * step);
          sum[p][0] = Math::add(sum[p][0], value, first);
          sum[p][1] = Math::add(sum[p][1], value, second);
        }
      }
    }
  }
}

template <int Pixels>
static inline void widen(Block<NarrowMath>& part, Block<NarrowMath>& sum) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int p = 0; p < Pixels; ++p) {
    for (int half = 0; half < 2; ++half) {
      sum[p][half] = _mm256_add_epi32(sum[p][half], _mm256_madd_epi16(part[p][half], ones));
      part[p][half] = NarrowMath::zero();
    }
  }
}

// The same in runs that fit 16 bits.
template <int Pixels>
static inline void accumulate_runs(const ConvArgs& a, int step, int h, int w, const std::int8_t* weight, Block<NarrowMath>& sum) {
  const int groups = NarrowMath::groups(a);
  Block<NarrowMath> part;
  for (int p = 0; p < Pixels; ++p) part[p][0] = part[p][1] = NarrowMath::zero();
  int left = a.run;
  for (int y = 0; y < a.kernel_h; ++y) {
    for (int x = 0; x < a.kernel_w; ++x) {
      const std::uint8_t* in = tap_row<NarrowMath>(a, step, h, w, y) + static_cast<std::ptrdiff_t>(x) * a.in_pixel;
      for (int rest = groups; rest > 0;) {
        const int now = rest < left ? rest : left;
        const std::int8_t* const end = weight + now * 4 * kBlock;
        for (; weight != end; weight += 4 * kBlock, in += NarrowMath::kGroup) {
          const __m256i first = NarrowMath::load(weight), second = NarrowMath::load(weight + 2 * kBlock);
#pragma GCC unroll 4
          for (int p = 0; p < Pixels; ++p) {
            const __m256i value = NarrowMath::spread(in + p * step);
            part[p][0] = NarrowMath::add(part[p][0], value, first);
            part[p][1] = NarrowMath::add(part[p][1], value, second);
          }
        }
        rest -= now;
        left -= now;
        if (left > 0) continue;
        widen<Pixels>(part, sum);
        left = a.run;
      }
    }
  }
  widen<Pixels>(part, sum);
}

template <class Math, int Pixels, Residual R, Result O>
static inline void row_piece(const ConvArgs& a, int step, int h, int w, int block, Sums& sums) {
  using Weight = typename Math::Weight;
  const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(a.kernel_h) * a.kernel_w * Math::groups(a) * Math::kGroup * kBlock;
  Block<Math> sum;
  for (int p = 0; p < Pixels; ++p) sum[p][0] = sum[p][1] = Math::zero();
  const Weight* weight = static_cast<const Weight*>(a.weights) + block * size;
  if constexpr (Math::kInRuns) accumulate_runs<Pixels>(a, step, h, w, weight, sum);
  else accumulate<Math, Pixels>(a, step, h, w, weight, sum);
  const int channel = block * kBlock;
#pragma GCC unroll 2
  for (int p = 0; p < Pixels; p += 2) {
    const bool both = p + 1 < Pixels;
    const int q = both ? p + 1 : p;
    __m256 pair[2][2] = {{finish(a, channel, sum[p][0]), finish(a, channel + 8, sum[p][1])},
                         {finish(a, channel, sum[q][0]), finish(a, channel + 8, sum[q][1])}};
    emit<R, O>(a, h, w + p, channel, both, pair, sums);
  }
}

template <class Math, Residual R, Result O>
static void direct(ConvArgs a) {
  // Where pixels lie side by side, a row of taps is one long run of channels.
  const int step = a.stride_w * a.in_pixel;
  if (a.in_pixel == a.in_channels && a.in_channels % Math::kGroup == 0) {
    a.in_channels *= a.kernel_w;
    a.kernel_w = 1;
  }
  for (int block = 0; block < a.out_blocks; ++block) {
    Sums sums;
    sums.clear();
    for (int h = 0; h < a.out_h; ++h) {
      int w = 0;
      for (; w + kPixels <= a.out_w; w += kPixels) row_piece<Math, 4, R, O>(a, step, h, w, block, sums);
      switch (a.out_w - w) {
        case 3: row_piece<Math, 3, R, O>(a, step, h, w, block, sums); break;
        case 2: row_piece<Math, 2, R, O>(a, step, h, w, block, sums); break;
        case 1: row_piece<Math, 1, R, O>(a, step, h, w, block, sums); break;
        default: break;
      }
    }
    add_sums(a, block * kBlock, sums);
  }
}

// All of the input as 16 bits, once: the kernel reads each level many times.
static ConvArgs widened(const ConvArgs& a) {
  ConvArgs wide = a;
  const int rows = (a.out_h - 1) * a.stride_h + a.kernel_h, columns = (a.out_w - 1) * a.stride_w + a.kernel_w;
  const int channels = a.in_pixel == kImagePixel ? kImagePixel : round_up(a.in_channels, kBlock);
  std::int16_t* to = static_cast<std::int16_t*>(a.scratch);
  wide.in = to;
  wide.in_pixel = channels;
  wide.in_row = round_up(columns * channels, kBlock);
  for (int h = 0; h < rows; ++h) {
    // A row's pixels lie side by side, padded channels included, unless some channels are left out.
    const bool dense = a.in_pixel == channels;
    const std::ptrdiff_t runs = dense ? 1 : columns, run = dense ? wide.in_row : channels;
    for (std::ptrdiff_t r = 0; r < runs; ++r) {
      const std::uint8_t* from = static_cast<const std::uint8_t*>(a.in) + h * a.in_row + r * a.in_pixel;
      for (std::ptrdiff_t i = 0; i < run; i += kBlock, to += kBlock) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(bytes));
      }
    }
  }
  return wide;
}

template <Residual R, Result O>
struct DirectInt {
  static void run(const ConvArgs& a) { direct<IntMath, R, O>(widened(a)); }
};
template <Residual R, Result O>
struct DirectNarrow {
  static void run(const ConvArgs& a) { direct<NarrowMath, R, O>(a); }
};
template <Residual R, Result O>
struct DirectFloat {
  static void run(const ConvArgs& a) { direct<FloatMath, R, O>(a); }
};

}  // namespace
}  // namespace avx2

constexpr KernelSet kAvx2Kernels = [] {
  KernelSet set;
  set.name = "avx2";
  set.conv_int = avx2::dispatch<avx2::DirectInt, true>;
  set.conv_narrow = avx2::dispatch<avx2::DirectNarrow, true>;
  set.conv_float = avx2::dispatch<avx2::DirectFloat>;
  set.winograd_int = avx2::winograd_int;
  set.winograd_float = avx2::winograd_float;
  set.winograd_2x2_short = avx2::winograd_2x2_short;
  set.winograd_2x2_wide = avx2::winograd_2x2_wide;
  set.winograd_4x2_short = avx2::winograd_4x2_short;
  set.winograd_4x2_wide = avx2::winograd_4x2_wide;
  set.int_group = 2;
  set.int_widens = true;
  set.gate = gate_avx2::decide;
  set.values = &kAvx2Values;
  set.resize = &kAvx2Resize;
  set.peaks = &kAvx2Peaks;
  return set;
}();

}  // namespace fracskip
