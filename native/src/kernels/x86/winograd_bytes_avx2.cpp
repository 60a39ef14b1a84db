// AVX2: 3x3 convolutions of stride 1 and few bits by Winograd's algorithm in bytes, F(2x2) with 16 products for 4 outputs and
// F(4x2) with 24 for 8. vpmaddubsw takes 32 of them, and adds them up in pairs. Why all of it is exact: plan/winograd_bytes.cpp.
#include <immintrin.h>

#include "kernels/x86/epilogue_avx2.hpp"
#include "kernels/x86/winograd_bytes.hpp"

namespace fracskip {
namespace avx2 {
namespace {

using ShortLanes = std::uint16_t __attribute__((vector_size(32), may_alias));  // modulo 2^16

// -- sums -------------------------------------------------------------------------------------------------

// A vector holds outputs 0 to 7 in its even lanes and 8 to 15 in its odd ones.
struct ShortSums {
  using Lanes = ShortLanes;
  static constexpr int kVectors = 1, kSize = 2;
  static constexpr bool kWide = false;
  static Lanes half(Lanes x, Lanes y) { return reinterpret_cast<Lanes>(_mm256_avg_epu16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(y))); }
  template <int Shift>
  static Lanes third(Lanes x) {
    return reinterpret_cast<Lanes>(_mm256_srai_epi16(_mm256_mullo_epi16(reinterpret_cast<__m256i>(x), _mm256_set1_epi16(static_cast<short>(0xAAAB))), Shift));
  }
  static void widen(const Lanes* y, __m256i (&to)[2]) {
    to[0] = _mm256_srai_epi32(_mm256_slli_epi32(reinterpret_cast<__m256i>(y[0]), 16), 16);
    to[1] = _mm256_srai_epi32(reinterpret_cast<__m256i>(y[0]), 16);
  }
  // Weights are packed so that an output's other sum is where the other vector's lanes are next to its own.
  static void put(__m256i first, __m256i second, const __m256i*, __m256i* to) {
    const __m256i swapped = _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    *to = _mm256_add_epi16(first, _mm256_shuffle_epi8(second, swapped));
  }
};

struct WideSums {
  using Lanes = IntLanes;
  static constexpr int kVectors = 2, kSize = 4;
  static constexpr bool kWide = true;
  static Lanes half(Lanes x, Lanes y) { return reinterpret_cast<Lanes>(_mm256_srai_epi32(reinterpret_cast<__m256i>(x + y), 1)); }
  template <int Shift>
  static Lanes third(Lanes x) { return reinterpret_cast<Lanes>(_mm256_srai_epi32(reinterpret_cast<__m256i>(x * 0xAAAAAAABu), Shift)); }
  static void widen(const Lanes* y, __m256i (&to)[2]) {
    to[0] = reinterpret_cast<__m256i>(y[0]);
    to[1] = reinterpret_cast<__m256i>(y[1]);
  }
  static void put(__m256i first, __m256i second, const __m256i* before, __m256i* to) {
    const __m256i ones = _mm256_set1_epi16(1);
    to[0] = _mm256_add_epi32(before[0], _mm256_madd_epi16(first, ones));
    to[1] = _mm256_add_epi32(before[1], _mm256_madd_epi16(second, ones));
  }
};

// Intrinsics would let GCC 12 reassociate the additions and spill what is added.
static inline void add(__m256i& sum, __m256i levels, __m256i weights) {
  const __m256i product = _mm256_maddubs_epi16(levels, weights);
  asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product));
}

// All positions' products for one block of outputs, four tiles at a time: m[position][tile][kBlock]. `Channels`: 0 for any. `Run`:
// groups that are added up in 16 bits at a time, 0 for all.
template <class Sum, int Channels, int Run>
__attribute__((noinline)) static void products(const std::uint8_t* v, int any_channels, const std::int32_t* begin, const std::int8_t* u, int positions, int tiles,
                                               std::uint8_t* m) {
  const int channels = Channels ? Channels : any_channels, groups = channels / kByteChannels, run = Run ? Run : groups;
  const std::ptrdiff_t v_position = byte_levels(channels), m_position = byte_sums(Sum::kSize);
  constexpr int kHalf = sizeof(__m256i);
  for (int position = 0; position < positions; ++position, v += v_position, m += m_position, u += channels * kBlock, begin += kBlock) {
    const __m256i* const start = reinterpret_cast<const __m256i*>(begin);
    for (int t = 0; t < tiles; t += 4) {
      __m256i* const to = reinterpret_cast<__m256i*>(m + t * kBlock * Sum::kSize);
      const std::uint8_t* x = v + t * channels;
      const std::int8_t* w = u;
      for (int g = 0; g < groups; g += run) {
        __m256i sum[4][2];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          sum[i][0] = Sum::kWide ? _mm256_setzero_si256() : start[0];
          sum[i][1] = Sum::kWide ? _mm256_setzero_si256() : start[1];
        }
#pragma GCC unroll 4
        for (int k = 0; k < run; ++k, x += kByteChannels, w += 2 * kHalf) {
          const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(w)), second = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + kHalf));
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            const __m256i levels = _mm256_set1_epi32(load<std::int32_t>(x + i * channels));
            add(sum[i][0], levels, first);
            add(sum[i][1], levels, second);
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) Sum::put(sum[i][0], sum[i][1], g == 0 ? start : to + i * Sum::kVectors, to + i * Sum::kVectors);
      }
    }
  }
}

template <class Sum>
static inline auto products_of(int channels, int run) {
  const int groups = channels / kByteChannels;
  if (Sum::kWide && run < groups) return run < 2 * kByteRun || groups % (2 * kByteRun) != 0 ? products<Sum, 0, kByteRun> : products<Sum, 0, 2 * kByteRun>;
  return channels == 16 ? products<Sum, 16, 0> : channels == 32 ? products<Sum, 32, 0> : channels == 64 ? products<Sum, 64, 0> : products<Sum, 0, 0>;
}

// -- outputs: Aᵀ m A --------------------------------------------------------------------------------------

template <class Sum, int Rows, Residual R, Result O>
__attribute__((always_inline)) static inline void output_tile(const ConvArgs& a, const std::uint8_t* m, int h, int w, int channel, Sums& sums) {
  using T = typename Sum::Lanes;
  constexpr int kTall = Rows + 2;
  T y[2][Rows][Sum::kVectors];
#pragma GCC unroll 2
  for (int k = 0; k < Sum::kVectors; ++k) {
    T z[2][kTall];
#pragma GCC unroll 6
    for (int i = 0; i < kTall; ++i) {
      const auto at = [&](int j) { return reinterpret_cast<const T*>(m + (i * kByteColumns + j) * byte_sums(Sum::kSize))[k]; };
      const T m1 = at(1), half = Sum::half(m1, at(2));
      z[0][i] = at(0) + half;
      z[1][i] = m1 - half - at(3);
    }
#pragma GCC unroll 2
    for (int x = 0; x < 2; ++x) {
      T column[Rows];
      down<Sum>(z[x], column);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) y[x][i][k] = column[i];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
    if (h + i >= a.out_h) return;
    __m256i sum[2][2];
    Sum::widen(y[0][i], sum[0]);
    Sum::widen(y[1][i], sum[1]);
    __m256 values[2][2] = {{finish(a, channel, sum[0][0]), finish(a, channel + 8, sum[0][1])},
                           {finish(a, channel, sum[1][0]), finish(a, channel + 8, sum[1][1])}};
    emit<R, O>(a, h + i, w, channel, w + 1 < a.out_w, values, sums);
  }
}

template <class Sum, int Rows, Residual R, Result O>
static void winograd(const ConvArgs& a) {
  const int channels = round_up(a.in_channels, kBlock), positions = byte_positions(Rows);
  const int across = (a.out_w + 1) / 2, tiles = across * ((a.out_h + Rows - 1) / Rows);
  const ByteHeader& header = *static_cast<const ByteHeader*>(a.weights);
  std::uint8_t* const v = static_cast<std::uint8_t*>(a.scratch);
  std::uint8_t* const m = v + positions * byte_levels(channels);
  const auto multiply = products_of<Sum>(channels, header.run);
  for (int first = 0; first < tiles; first += kByteTiles) {
    const int count = tiles - first < kByteTiles ? tiles - first : kByteTiles;
    transform_tiles<Levels, Rows>(a, first, count, across, v);
    const char* block = static_cast<const char*>(a.weights) + kByteHeader;
    for (int b = 0; b < a.out_blocks; ++b, block += byte_block(Rows, channels)) {
      const std::int32_t* begin = reinterpret_cast<const std::int32_t*>(block);
      multiply(v, channels, begin, reinterpret_cast<const std::int8_t*>(begin + positions * kBlock), positions, count, m);
      Sums sums;
      sums.clear();
      for (int t = 0; t < count; ++t) {
        const int row = (first + t) / across, column = (first + t) % across;
        output_tile<Sum, Rows, R, O>(a, m + t * kBlock * Sum::kSize, row * Rows, column * 2, b * kBlock, sums);
      }
      add_sums(a, b * kBlock, sums);
    }
  }
}

template <class Sum, int Rows>
struct Bytewise {
  template <Residual R, Result O>
  struct Kernel {
    static void run(const ConvArgs& a) { winograd<Sum, Rows, R, O>(a); }
  };
};

}  // namespace

void winograd_2x2_short(const ConvArgs& a) { dispatch<Bytewise<ShortSums, 2>::Kernel, true>(a); }
void winograd_2x2_wide(const ConvArgs& a) { dispatch<Bytewise<WideSums, 2>::Kernel, true>(a); }
void winograd_4x2_short(const ConvArgs& a) { dispatch<Bytewise<ShortSums, 4>::Kernel, true>(a); }
void winograd_4x2_wide(const ConvArgs& a) { dispatch<Bytewise<WideSums, 4>::Kernel, true>(a); }

}  // namespace avx2
}  // namespace fracskip
