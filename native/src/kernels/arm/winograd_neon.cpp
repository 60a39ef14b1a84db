// ARMv8.0: 3x3 convolutions of stride 1 by Winograd's algorithm (winograd.inl), integers by smlal of 16 bits.
#include <arm_neon.h>

#include "kernels/arm/epilogue_neon.hpp"
#include "kernels/common/kernels.hpp"

#define FRACSKIP_WINOGRAD neon

namespace fracskip {
namespace neon {
namespace {

using ShortLanes = int16x8_t;
using IntLanes = uint32x4_t;  // modulo 2^32
using FloatLanes = float32x4_t;

// Weights: [block][position][in_channels][kBlock].
struct IntMath {
  using In = std::uint8_t;
  using Element = std::int16_t;
  using In1 = ShortLanes;
  using Out1 = IntLanes;
  static constexpr int kLanes = 8, kParts = neon::kParts;
  static In1 load(const In* from) { return vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from))); }
  static In1 values(const Element* from) { return vld1q_s16(from); }
  template <int Lane>
  [[gnu::always_inline]] static void add(const In1 (&x)[4], const Element* weight, Out1 (&sum)[4][kParts]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int16x8_t weights = vld1q_s16(weight + 8 * half);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        Out1 &low = sum[i][2 * half], &high = sum[i][2 * half + 1];
        low = vreinterpretq_u32_s32(vmlal_laneq_s16(vreinterpretq_s32_u32(low), vget_low_s16(weights), x[i], Lane));
        high = vreinterpretq_u32_s32(vmlal_high_laneq_s16(vreinterpretq_s32_u32(high), weights, x[i], Lane));
      }
    }
  }
  template <int I, int J>
  static int32x4_t unscale(Out1 y) {
    constexpr int kShifts[kTile] = {3, 2, 1, 1};
    return vshrq_n_s32(vreinterpretq_s32_u32(y * vdupq_n_u32(0x38E38E39)), kShifts[I] + kShifts[J]);  // the inverse of 9
  }
};

struct FloatMath {
  using In = float;
  using Element = float;
  using In1 = FloatLanes;
  using Out1 = FloatLanes;
  static constexpr int kLanes = 4, kParts = neon::kParts;
  static In1 load(const In* from) { return vld1q_f32(from); }
  static In1 values(const Element* from) { return vld1q_f32(from); }
  template <int Lane>
  [[gnu::always_inline]] static void add(const In1 (&x)[4], const Element* weight, Out1 (&sum)[4][kParts]) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const float32x4_t weights = vld1q_f32(weight + 4 * part);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i][part] = vfmaq_laneq_f32(sum[i][part], weights, x[i], Lane);
    }
  }
  template <int I, int J>
  static float32x4_t unscale(Out1 y) { return y; }
};

template <class Math, int Lane = 0>
[[gnu::always_inline]] inline void add_lanes(const typename Math::In1 (&x)[4], const typename Math::Element* weight,
                                             typename Math::Out1 (&sum)[4][kParts]) {
  Math::template add<Lane>(x, weight, sum);
  if constexpr (Lane + 1 < Math::kLanes) add_lanes<Math, Lane + 1>(x, weight + kBlock, sum);
}

// Four tiles' products with the weights of a position and a block, a vector of channels after the other.
template <class Math>
[[gnu::always_inline]] inline void multiply_tiles(const typename Math::Element* v, std::ptrdiff_t channels, const typename Math::Element* weight,
                                                  const typename Math::Element* end, typename Math::Out1 (&sum)[4][kParts]) {
  typename Math::In1 x[4];
  for (; weight != end; weight += Math::kLanes * kBlock, v += Math::kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = Math::values(v + i * channels);
    add_lanes<Math>(x, weight, sum);
  }
}

template <class Math, Residual R, Element O, int I>
[[gnu::always_inline]] inline void output_row(const ConvArgs& a, int h, int w, int channel, const typename Math::Out1 (*y)[kTile][kTile], Sums& sums) {
  if (h + I >= a.out_h) return;
  decltype(Math::template unscale<I, 0>(y[0][I][0])) sum[kPixels][kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    sum[0][i] = Math::template unscale<I, 0>(y[i][I][0]);
    sum[1][i] = Math::template unscale<I, 1>(y[i][I][1]);
    sum[2][i] = Math::template unscale<I, 2>(y[i][I][2]);
    sum[3][i] = Math::template unscale<I, 3>(y[i][I][3]);
  }
  Values values;
  finish<kPixels>(a, channel, sum, values);
  if (w + kPixels <= a.out_w) return emit<R, O, kPixels>(a, h + I, w, channel, values, sums);
  for (int p = 0; w + p < a.out_w; ++p) {
    Values one;
    for (int i = 0; i < kParts; ++i) one[0][i] = values[p][i];
    emit<R, O, 1>(a, h + I, w + p, channel, one, sums);
  }
}

}  // namespace
}  // namespace neon
}  // namespace fracskip

#include "kernels/common/winograd.inl"

namespace fracskip {
namespace neon {
namespace {

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

}  // namespace neon
}  // namespace fracskip
