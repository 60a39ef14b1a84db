// Winograd's algorithm F(rows x 2, 3x3) in bytes (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
// 2016), exact: what its kernels and those who pack weights for them have in common. How it comes out, and what must be proved
// of a convolution's weights before: plan/winograd_bytes.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/kernels.hpp"

namespace fracskip {

inline constexpr int kByteColumns = 4;  // of a tile's input; its output has two
inline constexpr int kByteTiles = 16;   // in flight
inline constexpr int kBytePad = 64;     // bytes between positions: else they share cache sets
inline constexpr int kByteChannels = 4;  // whose products are added up at a time, a group
inline constexpr int kByteRun = 4;       // groups that kernels add up in 16 bits at least; of whole blocks of channels there are as many

[[gnu::always_inline]] inline constexpr int byte_positions(int rows) { return (rows + 2) * kByteColumns; }

// Packed weights begin with this, in a line of their own. Each block of outputs follows: what its sums begin with,
// int32 [position][kBlock], and its weights, [position][groups of kByteChannels][kBlock][kByteChannels]. Where sums are of 16 bits, the
// last two channels' of outputs o and o + 8 are exchanged: pairs of products that belong together then come to lie side by side.
// Of sets with signed levels there are no offsets, and a group's weights are [2][kBlock][2].
struct ByteHeader {
  std::uint8_t offset[7];      // added to the transformed levels of a tile's row, so that none is negative
  std::uint8_t second_offset;  // in row 1, to those of the second column
  std::int32_t run;            // groups whose products may be added up in 16 bits
};
inline constexpr std::size_t kByteHeader = 64;

[[gnu::always_inline]] inline constexpr std::size_t byte_block(int rows, int channels) {
  return static_cast<std::size_t>(byte_positions(rows)) * kBlock * (sizeof(std::int32_t) + static_cast<std::size_t>(channels));
}

// From a position's transformed levels to the next one's, and from its sums; of channels that are whole blocks.
[[gnu::always_inline]] inline constexpr std::ptrdiff_t byte_levels(int channels) { return static_cast<std::ptrdiff_t>(kByteTiles) * channels + kBytePad; }
[[gnu::always_inline]] inline constexpr std::ptrdiff_t byte_sums(int sum) { return static_cast<std::ptrdiff_t>(kByteTiles) * kBlock * sum + kBytePad; }

[[gnu::always_inline]] inline std::size_t byte_scratch(int in_channels, int rows, int sum) {
  return static_cast<std::size_t>(byte_positions(rows) * (byte_levels(round_up(in_channels, kBlock)) + byte_sums(sum)));
}

}  // namespace fracskip
