// The shape of an activation, and the limits that keep an engine's memory bounded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "io/bundle.hpp"
#include "plan/network.hpp"

namespace fracskip {

inline constexpr int kStreamLevels = 255;  // above 0
inline constexpr std::int64_t kMaxSum = std::numeric_limits<std::int32_t>::max();

[[noreturn]] inline void refuse(const std::string& what) { throw BundleError("plan: " + what); }

struct Shape {
  std::int64_t channels = 0, height = 0, width = 0;

  bool operator==(const Shape& other) const {
    return channels == other.channels && height == other.height && width == other.width;
  }

  std::string text() const {
    return std::to_string(channels) + " channels of " + std::to_string(height) + " x " +
           std::to_string(width);
  }
};

// Adds up what a network takes, and refuses what is too much.
class Limits {
 public:
  // Extents are at most 2^16 + 2 * 2^16, or a window's result of that, so planes cannot overflow.
  Shape bounded(const Shape& shape, const std::string& what) {
    const std::int64_t plane = shape.height * shape.width;
    if (plane > kMaxActivationBytes || plane * shape.channels * 4 > kMaxActivationBytes) {
      refuse(what + " has activations of more than 1 GiB: " + shape.text());
    }
    total_bytes_ += rounded(shape.height, kTileEdge) * rounded(shape.width, kTileEdge) *
                    rounded(shape.channels, kChannelBlock) * 4;
    if (total_bytes_ > kMaxTotalBytes) refuse("all activations together take more than 4 GiB");
    return shape;
  }

  // What a window makes of a shape. An engine may keep the input with a border as wide as the
  // widest padding on every side, so that is bounded too.
  Shape slide(const Shape& in, const Window& window, const std::string& what) {
    const std::int64_t border = window.widest_pad();
    bounded({in.channels, in.height + 2 * border, in.width + 2 * border}, what);
    const std::int64_t height = in.height + window.pad_top + window.pad_bottom - window.kernel_h;
    const std::int64_t width = in.width + window.pad_left + window.pad_right - window.kernel_w;
    if (height < 0 || width < 0) {
      refuse(what + " has a kernel that is larger than its input, " + in.text());
    }
    return {in.channels, height / window.stride_h + 1, width / window.stride_w + 1};
  }

  // The weights of `out` channels that are so many each.
  void weigh(std::int64_t each, std::int64_t out, const std::string& what) {
    if (each > kMaxWeights || each * out > kMaxWeights - weights_) {
      refuse(what + " brings the weights to 2^31 or more");
    }
    weights_ += each * out;
  }

  // A channel's sum of so many products, at a width; 0 is floating point.
  static void add_up(std::int64_t products, int bits, const std::string& what) {
    if (bits == 0 || bits > kMaxIntegerBits) return;
    const std::int64_t largest = ((std::int64_t{1} << bits) - 1) * ((1 << (bits - 1)) - 1);
    if (products > kMaxSum / largest) refuse(what + " adds up more products than 32 bits hold");
  }

 private:
  static constexpr std::int64_t kMaxActivationBytes = std::int64_t{1} << 30;
  // Of all activations together, as an engine may keep them: in tiles, channels in blocks.
  static constexpr std::int64_t kMaxTotalBytes = std::int64_t{1} << 32;
  static constexpr std::int64_t kTileEdge = 8, kChannelBlock = 16;
  static constexpr std::int64_t kMaxWeights = std::numeric_limits<std::int32_t>::max();  // all together

  static std::int64_t rounded(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
  }

  std::int64_t total_bytes_ = 0, weights_ = 0;
};

}  // namespace fracskip
