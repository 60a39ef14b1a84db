// What the Arm kernels do with 16 channels of neighbouring pixels once they are summed up: scale, bias,
// residual, requantisation, channel sums, store. Float operations are the plain loops', in their order.
#pragma once

#include <arm_neon.h>

#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace neon {

void winograd_int(const ConvArgs& a);
void winograd_float(const ConvArgs& a);
void winograd_4x2_short(const ConvArgs& a);
void winograd_4x2_wide(const ConvArgs& a);

namespace {

inline constexpr int kPixels = 4;
inline constexpr int kParts = kBlock / 4;  // vectors of a pixel's channels

using Values = float32x4_t[kPixels][kParts];

// Channel sums of one block of 16 channels while its pixels go by.
struct Sums {
  uint16x8_t low, high;        // u8: channels 0..7 and 8..15
  float32x4_t values[kParts];  // f32
  int pixels;                  // added since the last flush

  void clear() {
    low = high = vdupq_n_u16(0);
    for (float32x4_t& value : values) value = vdupq_n_f32(0.f);
    pixels = 0;
  }
};

inline void add_sums(const ConvArgs& a, int channel, Sums& sums) {
  if (!a.sums) return;
  if (a.out_type == Element::u8) {
    std::uint32_t* to = static_cast<std::uint32_t*>(a.sums) + channel;
    vst1q_u32(to, vaddw_u16(vld1q_u32(to), vget_low_u16(sums.low)));
    vst1q_u32(to + 4, vaddw_high_u16(vld1q_u32(to + 4), sums.low));
    vst1q_u32(to + 8, vaddw_u16(vld1q_u32(to + 8), vget_low_u16(sums.high)));
    vst1q_u32(to + 12, vaddw_high_u16(vld1q_u32(to + 12), sums.high));
  } else {
    float* to = static_cast<float*>(a.sums) + channel;
    for (int i = 0; i < kParts; ++i) vst1q_f32(to + 4 * i, vaddq_f32(vld1q_f32(to + 4 * i), sums.values[i]));
  }
  sums.clear();
}

inline constexpr int kMostPixels = 257;  // 255 of each are the most that 16 bits hold

inline float32x4_t to_float(int32x4_t sum) { return vcvtq_f32_s32(sum); }
inline float32x4_t to_float(float32x4_t sum) { return sum; }

// Accumulators to values with scale, which integers have alone, and bias.
template <int Pixels, class Sum>
[[gnu::always_inline]] inline void finish(const ConvArgs& a, int channel, const Sum (&sum)[kPixels][kParts], Values& y) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const float32x4_t bias = vld1q_f32(a.bias + channel + 4 * i);
    float32x4_t scale;
    if constexpr (!__is_same(Sum, float32x4_t)) scale = vld1q_f32(a.scale + channel + 4 * i);
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p) {
      y[p][i] = to_float(sum[p][i]);
      if constexpr (!__is_same(Sum, float32x4_t)) y[p][i] = vmulq_f32(y[p][i], scale);
      y[p][i] = vaddq_f32(y[p][i], bias);
    }
  }
}

template <Residual R>
[[gnu::always_inline]] inline void add_residual(const ConvArgs& a, std::ptrdiff_t at, float32x4_t (&y)[kParts]) {
  if constexpr (R == Residual::u8) {
    const uint8x16_t levels = vld1q_u8(static_cast<const std::uint8_t*>(a.residual) + at);
    const uint16x8_t low = vmovl_u8(vget_low_u8(levels)), high = vmovl_high_u8(levels);
    y[0] = vaddq_f32(y[0], vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))));
    y[1] = vaddq_f32(y[1], vcvtq_f32_u32(vmovl_high_u16(low)));
    y[2] = vaddq_f32(y[2], vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))));
    y[3] = vaddq_f32(y[3], vcvtq_f32_u32(vmovl_high_u16(high)));
  } else if constexpr (R == Residual::f32) {
    const float* from = static_cast<const float*>(a.residual) + at;
    for (int i = 0; i < kParts; ++i) y[i] = vaddq_f32(y[i], vld1q_f32(from + 4 * i));
  }
}

// Rounds to the nearest, of two the even one. Narrowing clamps at 0; the minimum, which takes `top` of what is no
// number, clamps above.
[[gnu::always_inline]] inline uint8x16_t levels_of(const float32x4_t (&y)[kParts], float32x4_t input, float32x4_t top) {
  int32x4_t q[kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) q[i] = vcvtnq_s32_f32(vminnmq_f32(vmulq_f32(y[i], input), top));
  const uint16x8_t low = vqmovun_high_s32(vqmovun_s32(q[0]), q[1]), high = vqmovun_high_s32(vqmovun_s32(q[2]), q[3]);
  return vqmovn_high_u16(vqmovn_u16(low), high);
}

// Values with scale and bias already in them, of pixels w and on.
template <Residual R, Element O, int Pixels>
[[gnu::always_inline]] inline void emit(const ConvArgs& a, int h, int w, int channel, Values& y, Sums& sums) {
  const std::ptrdiff_t from = h * a.residual_row + static_cast<std::ptrdiff_t>(w) * a.residual_pixel + channel;
  const std::ptrdiff_t to = h * a.out_row + static_cast<std::ptrdiff_t>(w) * a.out_pixel + channel;
  if (R != Residual::none) {
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p) add_residual<R>(a, from + p * static_cast<std::ptrdiff_t>(a.residual_pixel), y[p]);
  }
  if constexpr (O == Element::u8) {
    std::uint8_t* const out = static_cast<std::uint8_t*>(a.out) + to;
    const std::ptrdiff_t pixel = a.out_pixel;
    const bool counts = a.sums != nullptr;
    const float32x4_t input = vdupq_n_f32(a.input), top = vdupq_n_f32(a.top);
    if (counts && sums.pixels + Pixels > kMostPixels) add_sums(a, channel, sums);
    sums.pixels += Pixels;
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p) {
      const uint8x16_t levels = levels_of(y[p], input, top);
      vst1q_u8(out + p * pixel, levels);
      if (!counts) continue;
      sums.low = vaddw_u8(sums.low, vget_low_u8(levels));
      sums.high = vaddw_high_u8(sums.high, levels);
    }
  } else {
    float* const out = static_cast<float*>(a.out) + to;
    const std::ptrdiff_t pixel = a.out_pixel;
    const float32x4_t zero = vdupq_n_f32(0.f), most = vdupq_n_f32(a.most);
    const bool clamps = a.relu;
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p) {
      for (int i = 0; i < kParts; ++i) {
        if (clamps) y[p][i] = vminnmq_f32(vmaxnmq_f32(y[p][i], zero), most);
        vst1q_f32(out + p * pixel + 4 * i, y[p][i]);
        sums.values[i] = vaddq_f32(sums.values[i], y[p][i]);
      }
    }
  }
}

// Calls Kernel<residual, output>::run for the arguments' types.
template <template <Residual, Element> class Kernel>
void dispatch(const ConvArgs& a) {
  if (a.out_type == Element::u8) {
    if (a.residual_type == Residual::none) return Kernel<Residual::none, Element::u8>::run(a);
    if (a.residual_type == Residual::u8) return Kernel<Residual::u8, Element::u8>::run(a);
    return Kernel<Residual::f32, Element::u8>::run(a);
  }
  if (a.residual_type == Residual::none) return Kernel<Residual::none, Element::f32>::run(a);
  if (a.residual_type == Residual::u8) return Kernel<Residual::u8, Element::f32>::run(a);
  return Kernel<Residual::f32, Element::f32>::run(a);
}

}  // namespace
}  // namespace neon
}  // namespace fracskip
