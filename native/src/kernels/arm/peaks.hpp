// What all Arm processors reach at most; see `Peaks`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fracskip {
namespace neon {

inline constexpr int kPeakSums = 16;  // as many as hide an addition's latency

// The value is needed, and nothing is known of it afterwards.
namespace {
template <class Register>
[[gnu::always_inline]] inline void keep(Register& value) {
  asm volatile("" : "+w"(value));
}
}  // namespace

std::int64_t peak_fp32(std::int64_t rounds);
void peak_read(const void* from, std::size_t bytes);

}  // namespace neon
}  // namespace fracskip
