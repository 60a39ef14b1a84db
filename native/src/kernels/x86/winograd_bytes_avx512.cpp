// AVX-512 VNNI: 3x3 convolutions of stride 1 and few bits by Winograd's algorithm in bytes. vpdpbusd adds up in 32 bits.
#include <immintrin.h>

#include "kernels/x86/epilogue_avx512.hpp"
#include "kernels/x86/winograd_bytes.hpp"

namespace fracskip {
namespace avx512 {
namespace {

using IntLanes = std::uint32_t __attribute__((vector_size(64), may_alias));  // modulo 2^32

struct WideSums {
  using Lanes = IntLanes;
  static Lanes half(Lanes x, Lanes y) { return reinterpret_cast<Lanes>(_mm512_srai_epi32(reinterpret_cast<__m512i>(x + y), 1)); }
  template <int Shift>
  static Lanes third(Lanes x) { return reinterpret_cast<Lanes>(_mm512_srai_epi32(reinterpret_cast<__m512i>(x * 0xAAAAAAABu), Shift)); }
};
inline constexpr int kSum = sizeof(std::int32_t), kAtOnce = 8;

// All positions' products for one block of outputs, eight tiles at a time: m[position][tile][kBlock]. `Channels`: 0 for any.
template <int Channels>
__attribute__((noinline)) static void products(const std::uint8_t* v, int any_channels, const std::int32_t* begin, const std::int8_t* u, int positions, int tiles,
                                               std::uint8_t* m) {
  const int channels = Channels ? Channels : any_channels, groups = channels / kByteChannels;
  const std::ptrdiff_t v_position = byte_levels(channels), m_position = byte_sums(kSum);
  for (int position = 0; position < positions; ++position, v += v_position, m += m_position, u += channels * kBlock, begin += kBlock) {
    const __m512i start = _mm512_load_si512(begin);
    for (int t = 0; t < tiles; t += kAtOnce) {
      const std::uint8_t* x = v + t * channels;
      __m512i sum[kAtOnce];
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) sum[i] = start;
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g) {
        const __m512i weights = _mm512_load_si512(u + g * kByteChannels * kBlock);
#pragma GCC unroll 8
        for (int i = 0; i < kAtOnce; ++i) {
          const __m512i levels = _mm512_set1_epi32(load<std::int32_t>(x + i * channels + g * kByteChannels));
          asm("vpdpbusd %2, %1, %0" : "+v"(sum[i]) : "v"(levels), "v"(weights));  // see direct_avx512.cpp
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) _mm512_store_si512(m + (t + i) * kBlock * kSum, sum[i]);
    }
  }
}

// One or two tiles that lie side by side, of `Pixels` pixels across.
template <int Rows, int Pixels, Residual R, Result O>
__attribute__((always_inline)) static inline void output_tiles(const ConvArgs& a, const std::uint8_t* m, int h, int w, int block, Sums& sums) {
  using T = IntLanes;
  constexpr int kTall = Rows + 2, kTiles = (Pixels + 1) / 2;
  T y[Rows][kTogether];
#pragma GCC unroll 2
  for (int t = 0; t < kTiles; ++t) {
    T z[2][kTall];
#pragma GCC unroll 6
    for (int i = 0; i < kTall; ++i) {
      const auto at = [&](int j) { return *reinterpret_cast<const T*>(m + (i * kByteColumns + j) * byte_sums(kSum) + t * kBlock * kSum); };
      const T m1 = at(1), half = WideSums::half(m1, at(2));
      z[0][i] = at(0) + half;
      z[1][i] = m1 - half - at(3);
    }
#pragma GCC unroll 2
    for (int x = 0; x < 2; ++x) {
      T column[Rows];
      down<WideSums>(z[x], column);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i) y[i][t * 2 + x] = column[i];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
    if (h + i >= a.out_h) return;
    __m512i sum[kTogether];
#pragma GCC unroll 4
    for (int p = 0; p < kTogether; ++p) sum[p] = reinterpret_cast<__m512i>(y[i][p < Pixels ? p : 0]);
    finish<Pixels, R, O>(Target(a, block, h + i, w), 0, sum, sums);
  }
}

template <int Rows, Residual R, Result O>
static void winograd(const ConvArgs& a) {
  const int channels = round_up(a.in_channels, kBlock), positions = byte_positions(Rows);
  const int across = (a.out_w + 1) / 2, tiles = across * ((a.out_h + Rows - 1) / Rows);
  std::uint8_t* const v = static_cast<std::uint8_t*>(a.scratch);
  std::uint8_t* const m = v + positions * byte_levels(channels);
  const auto multiply = channels == 16 ? products<16> : channels == 32 ? products<32> : channels == 64 ? products<64> : products<0>;
  for (int first = 0; first < tiles; first += kByteTiles) {
    const int count = tiles - first < kByteTiles ? tiles - first : kByteTiles;
    transform_tiles<Levels, Rows>(a, first, count, across, v);
    const char* block = static_cast<const char*>(a.weights) + kByteHeader;
    for (int b = 0; b < a.out_blocks; ++b, block += byte_block(Rows, channels)) {
      const std::int32_t* begin = reinterpret_cast<const std::int32_t*>(block);
      multiply(v, channels, begin, reinterpret_cast<const std::int8_t*>(begin + positions * kBlock), positions, count, m);
      Sums sums;
      for (int t = 0; t < count;) {
        const int h = (first + t) / across * Rows, w = (first + t) % across * 2, left = a.out_w - w;
        const std::uint8_t* at = m + t * kBlock * kSum;
        const bool pair = left > 2 && t + 1 < count;
        if (pair && left > 3) output_tiles<Rows, 4, R, O>(a, at, h, w, b, sums);
        else if (pair) output_tiles<Rows, 3, R, O>(a, at, h, w, b, sums);
        else if (left > 1) output_tiles<Rows, 2, R, O>(a, at, h, w, b, sums);
        else output_tiles<Rows, 1, R, O>(a, at, h, w, b, sums);
        t += pair ? 2 : 1;
      }
      add_sums<O>(a, b, sums);
    }
  }
}

template <int Rows>
struct Bytewise {
  template <Residual R, Result O>
  struct Kernel {
    static void run(const ConvArgs& a) { winograd<Rows, R, O>(a); }
  };
};

}  // namespace

void winograd_2x2_wide(const ConvArgs& a) { dispatch<Bytewise<2>::Kernel, true>(a); }
void winograd_4x2_wide(const ConvArgs& a) { dispatch<Bytewise<4>::Kernel, true>(a); }

}  // namespace avx512
}  // namespace fracskip
