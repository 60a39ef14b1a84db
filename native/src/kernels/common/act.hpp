// Activations of graph networks; docs/bundle.md says what each is.
#pragma once

#include <cstdint>

namespace fracskip {

enum class Act : std::uint8_t { none, relu, relu6, hardsigmoid, hardswish, sigmoid, silu, gelu };

// Whether 0 stays 0: of others, channels that only pad must be zeroed again.
[[gnu::always_inline]] inline constexpr bool keeps_zero(Act act) { return act != Act::sigmoid && act != Act::hardsigmoid; }

}  // namespace fracskip
