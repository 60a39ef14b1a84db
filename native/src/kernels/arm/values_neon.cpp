// Values with NEON.
#include <arm_neon.h>

#include "kernels/common/kernels.hpp"

#define FRACSKIP_VALUES values_neon

namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

using Lanes = float32x4_t;
constexpr int kLanes = 4;

inline Lanes load(const float* from) { return vld1q_f32(from); }
inline void store(float* to, Lanes x) { vst1q_f32(to, x); }
inline Lanes all(float x) { return vdupq_n_f32(x); }
inline Lanes from_levels(const std::uint8_t* from) {
  std::uint32_t four;
  __builtin_memcpy(&four, from, sizeof four);
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
inline void to_levels(std::uint8_t* to, Lanes x) {  // of 0 to 255
  const uint16x4_t words = vmovn_u32(vcvtnq_u32_f32(x));
  const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
  __builtin_memcpy(to, &four, sizeof four);
}
inline Lanes times_plus(Lanes x, Lanes y, Lanes z) { return vfmaq_f32(z, x, y); }
// Of what is no number the second, as on other processors.
inline Lanes largest(Lanes x, Lanes y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
inline Lanes smallest(Lanes x, Lanes y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
inline Lanes root(Lanes x) { return vsqrtq_f32(x); }
inline Lanes rounded(Lanes x) { return vrndnq_f32(x); }
inline Lanes two_to(Lanes n) {  // of whole numbers from -126 to 127
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
inline Lanes where_less(Lanes x, Lanes y, Lanes then, Lanes otherwise) { return vbslq_f32(vcltq_f32(x, y), then, otherwise); }

}  // namespace
}  // namespace FRACSKIP_VALUES
}  // namespace fracskip

#include "kernels/common/values.inl"

namespace fracskip {

constexpr ValueKernels kNeonValues = FRACSKIP_VALUES::value_kernels(FRACSKIP_VALUES::depthwise<std::uint8_t, float>,
                                                              FRACSKIP_VALUES::depthwise<std::uint8_t, std::uint8_t>);

}  // namespace fracskip
