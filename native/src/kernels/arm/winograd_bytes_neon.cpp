// ARMv8.0: 3x3 convolutions of stride 1 and few bits by Winograd's algorithm in bytes, F(4x2) with 24 products for 8 outputs. smlal
// takes 8 of them, of signed bytes, and adds them up in 16 bits. (F(2x2), with 16 for 4, takes as many instructions as F(4x4) in 16 bits.)
// Why all of it is exact: plan/winograd_bytes.cpp.
#include <arm_neon.h>

#include "kernels/arm/epilogue_neon.hpp"
#include "kernels/common/winograd_bytes.inl"

namespace fracskip {
namespace neon {
namespace {

struct Levels {
  template <class Rows>
  static void rows(const Run& run) {
    for (int c = 0; c < run.channels; c += kBlock) across<Rows, uint8x16_t, false>(run, c);
  }
};

// -- sums -------------------------------------------------------------------------------------------------

// What products of four vectors of four outputs each, by two channels, come to: 16 outputs, modulo 2^16.
struct ShortSums {
  using Lanes = uint16x8_t;
  static constexpr int kVectors = 2, kSize = 2;
  static Lanes half(Lanes x, Lanes y) { return vrhaddq_u16(x, y); }
  template <int Shift>
  static Lanes third(Lanes x) { return vreinterpretq_u16_s16(vshrq_n_s16(vreinterpretq_s16_u16(x * vdupq_n_u16(0xAAAB)), Shift)); }
  static void widen(Lanes y, int32x4_t* to) {
    const int16x8_t values = vreinterpretq_s16_u16(y);
    to[0] = vmovl_s16(vget_low_s16(values));
    to[1] = vmovl_high_s16(values);
  }
  struct Start {
    int16x8_t first[2];
    explicit Start(const std::int32_t* begin) {
      for (int k = 0; k < 2; ++k) {
        const std::int32_t* from = begin + 8 * k;
        first[k] = vuzp1q_s16(vreinterpretq_s16_s32(vld1q_s32(from)), vreinterpretq_s16_s32(vld1q_s32(from + 4)));
      }
    }
    void put(const int16x8_t (&sum)[kParts], std::uint8_t* to, bool) const {
      auto* const out = reinterpret_cast<std::int16_t*>(to);
      vst1q_s16(out, vaddq_s16(first[0], vpaddq_s16(sum[0], sum[1])));
      vst1q_s16(out + 8, vaddq_s16(first[1], vpaddq_s16(sum[2], sum[3])));
    }
  };
};

struct WideSums {
  using Lanes = uint32x4_t;  // modulo 2^32
  static constexpr int kVectors = 4, kSize = 4;
  static Lanes half(Lanes x, Lanes y) { return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(x + y), 1)); }
  template <int Shift>
  static Lanes third(Lanes x) { return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(x * vdupq_n_u32(0xAAAAAAAB)), Shift)); }
  static void widen(Lanes y, int32x4_t* to) { *to = vreinterpretq_s32_u32(y); }
  struct Start {
    const std::int32_t* begin;
    explicit Start(const std::int32_t* from) : begin(from) {}
    void put(const int16x8_t (&sum)[kParts], std::uint8_t* to, bool is_first) const {
      auto* const out = reinterpret_cast<std::int32_t*>(to);
      const std::int32_t* const before = is_first ? begin : out;
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) vst1q_s32(out + 4 * i, vpadalq_s16(vld1q_s32(before + 4 * i), sum[i]));
    }
  };
};

// Eight pairs of channels; `First`: to sums that are 0.
template <int Pair, bool First>
[[gnu::always_inline]] inline void add_pairs(const int8x16_t (&levels)[4], const std::int8_t* weights, int16x8_t (&sum)[4][kParts]) {
  const int8x16_t first = vld1q_s8(weights), second = vld1q_s8(weights + kBlock);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int8x16_t x = vreinterpretq_s8_s16(vdupq_laneq_s16(vreinterpretq_s16_s8(levels[i]), Pair));
    if constexpr (First) {
      sum[i][0] = vmull_s8(vget_low_s8(first), vget_low_s8(x));
      sum[i][1] = vmull_high_s8(first, x);
      sum[i][2] = vmull_s8(vget_low_s8(second), vget_low_s8(x));
      sum[i][3] = vmull_high_s8(second, x);
    } else {
      sum[i][0] = vmlal_s8(sum[i][0], vget_low_s8(first), vget_low_s8(x));
      sum[i][1] = vmlal_high_s8(sum[i][1], first, x);
      sum[i][2] = vmlal_s8(sum[i][2], vget_low_s8(second), vget_low_s8(x));
      sum[i][3] = vmlal_high_s8(sum[i][3], second, x);
    }
  }
  if constexpr (Pair + 1 < kBlock / 2) add_pairs<Pair + 1, false>(levels, weights + 2 * kBlock, sum);
}

// A block of channels of four tiles.
template <bool First>
[[gnu::always_inline]] inline void add_block(const std::int8_t* levels, int channels, const std::int8_t* weights, int16x8_t (&sum)[4][kParts]) {
  int8x16_t x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = vld1q_s8(levels + i * channels);
    asm("" : "+w"(x[i]));  // else GCC loads each pair anew, through a general register
  }
  add_pairs<0, First>(x, weights, sum);
}

// All positions' products for one block of outputs, four tiles at a time: m[position][tile][kBlock]. `run`: blocks of channels that
// are added up in 16 bits at a time.
template <class Sum>
[[gnu::noinline]] void products(const std::uint8_t* v, int channels, const std::int32_t* begin, const std::int8_t* u, int positions, int tiles, int run, std::uint8_t* m) {
  const std::ptrdiff_t v_position = byte_levels(channels), m_position = byte_sums(Sum::kSize);
  for (int position = 0; position < positions; ++position, v += v_position, m += m_position, u += channels * kBlock, begin += kBlock) {
    const typename Sum::Start start(begin);
    for (int t = 0; t < tiles; t += 4) {
      std::uint8_t* const to = m + t * kBlock * Sum::kSize;
      const std::int8_t *x = reinterpret_cast<const std::int8_t*>(v) + t * channels, *w = u;
      for (int c = 0; c < channels;) {
        const bool is_first = c == 0;
        const int end = run < (channels - c) / kBlock ? c + run * kBlock : channels;
        int16x8_t sum[4][kParts];
        add_block<true>(x, channels, w, sum);
        for (c += kBlock, x += kBlock, w += kBlock * kBlock; c < end; c += kBlock, x += kBlock, w += kBlock * kBlock) add_block<false>(x, channels, w, sum);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) start.put(sum[i], to + i * kBlock * Sum::kSize, is_first);
      }
    }
  }
}

inline constexpr int kRows = 4;  // of outputs

// -- outputs: Aᵀ m A --------------------------------------------------------------------------------------

template <class Sum, Residual R, Element O>
[[gnu::always_inline]] inline void output_tile(const ConvArgs& a, const std::uint8_t* m, int h, int w, int channel, Sums& sums) {
  using T = typename Sum::Lanes;
  constexpr int kTall = kRows + 2, kEach = kParts / Sum::kVectors;
  T y[2][kRows][Sum::kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < Sum::kVectors; ++k) {
    T z[2][kTall];
#pragma GCC unroll 6
    for (int i = 0; i < kTall; ++i) {
      const auto at = [&](int j) { return load<T>(m + (i * kByteColumns + j) * byte_sums(Sum::kSize) + k * static_cast<std::ptrdiff_t>(sizeof(T))); };
      const T m1 = at(1), half = Sum::half(m1, at(2));
      z[0][i] = at(0) + half;
      z[1][i] = m1 - half - at(3);
    }
#pragma GCC unroll 2
    for (int x = 0; x < 2; ++x) {
      T column[kRows];
      down<Sum>(z[x], column);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) y[x][i][k] = column[i];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    if (h + i >= a.out_h) return;
    int32x4_t sum[kPixels][kParts];
#pragma GCC unroll 4
    for (int k = 0; k < Sum::kVectors; ++k) {
      Sum::widen(y[0][i][k], &sum[0][kEach * k]);
      Sum::widen(y[1][i][k], &sum[1][kEach * k]);
    }
    Values values;
    finish<2>(a, channel, sum, values);
    if (w + 1 < a.out_w) emit<R, O, 2>(a, h + i, w, channel, values, sums);
    else emit<R, O, 1>(a, h + i, w, channel, values, sums);
  }
}

template <class Sum, Residual R, Element O>
void winograd(const ConvArgs& a) {
  const int channels = round_up(a.in_channels, kBlock), positions = byte_positions(kRows);
  const int across = (a.out_w + 1) / 2, tiles = across * ((a.out_h + kRows - 1) / kRows);
  const int run = static_cast<const ByteHeader*>(a.weights)->run / (kBlock / kByteChannels);
  std::uint8_t* const v = static_cast<std::uint8_t*>(a.scratch);
  std::uint8_t* const m = v + positions * byte_levels(channels);
  for (int first = 0; first < tiles; first += kByteTiles) {
    const int count = tiles - first < kByteTiles ? tiles - first : kByteTiles;
    transform_tiles<Levels, kRows>(a, first, count, across, v);
    const char* block = static_cast<const char*>(a.weights) + kByteHeader;
    for (int b = 0; b < a.out_blocks; ++b, block += byte_block(kRows, channels)) {
      const std::int32_t* begin = reinterpret_cast<const std::int32_t*>(block);
      products<Sum>(v, channels, begin, reinterpret_cast<const std::int8_t*>(begin + positions * kBlock), positions, count, Sum::kSize == 2 ? channels : run, m);
      Sums sums;
      sums.clear();
      for (int t = 0; t < count; ++t) {
        const int row = (first + t) / across, column = (first + t) % across;
        output_tile<Sum, R, O>(a, m + t * kBlock * Sum::kSize, row * kRows, column * 2, b * kBlock, sums);
      }
      add_sums(a, b * kBlock, sums);
    }
  }
}

template <class Sum>
struct Bytewise {
  template <Residual R, Element O>
  struct Kernel {
    static void run(const ConvArgs& a) { winograd<Sum, R, O>(a); }
  };
};

}  // namespace

void winograd_4x2_short(const ConvArgs& a) { dispatch<Bytewise<ShortSums>::Kernel>(a); }
void winograd_4x2_wide(const ConvArgs& a) { dispatch<Bytewise<WideSums>::Kernel>(a); }

}  // namespace neon
}  // namespace fracskip
