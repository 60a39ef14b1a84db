// Whether floats are numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fracskip {

// A float is finite unless its exponent is all ones; as integers this vectorises.
inline bool all_finite(const float* values, std::size_t count) {
  unsigned bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !bad;
}

}  // namespace fracskip
