// Values by plain loops.
#include <cmath>
#include <cstring>

#include "kernels/common/kernels.hpp"

#define FRACSKIP_VALUES values_scalar

namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

using Lanes = float;
constexpr int kLanes = 1;

inline Lanes load(const float* from) { return *from; }
inline void store(float* to, Lanes x) { *to = x; }
inline Lanes all(float x) { return x; }
inline Lanes from_levels(const std::uint8_t* from) { return static_cast<float>(*from); }
inline void to_levels(std::uint8_t* to, Lanes x) { *to = static_cast<std::uint8_t>(std::nearbyintf(x)); }  // of 0 to 255
inline Lanes times_plus(Lanes x, Lanes y, Lanes z) { return x * y + z; }
inline Lanes largest(Lanes x, Lanes y) { return x > y ? x : y; }
inline Lanes smallest(Lanes x, Lanes y) { return x < y ? x : y; }
inline Lanes root(Lanes x) { return std::sqrt(x); }
inline Lanes rounded(Lanes x) { return std::nearbyintf(x); }
inline Lanes two_to(Lanes n) {  // of whole numbers from -126 to 127
  const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}
inline Lanes where_less(Lanes x, Lanes y, Lanes then, Lanes otherwise) { return x < y ? then : otherwise; }

}  // namespace
}  // namespace FRACSKIP_VALUES
}  // namespace fracskip

#include "kernels/common/values.inl"

namespace fracskip {

constexpr ValueKernels kScalarValues = FRACSKIP_VALUES::value_kernels(FRACSKIP_VALUES::depthwise<std::uint8_t, float>,
                                                              FRACSKIP_VALUES::depthwise<std::uint8_t, std::uint8_t>);

}  // namespace fracskip
