// Images as they come, and as a network's first activation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "plan/memory.hpp"
#include "plan/network.hpp"

namespace fracskip {

// How images come: uint8 pixels (H, W, C), or floats (H, W, C) that are already normalised.
enum class PixelType { u8, f32 };

class ImageReader {
 public:
  explicit ImageReader(const Network& network) {
    for (int c = 0; c < network.channels; ++c) {
      for (int level = 0; level < 256; ++level) {
        const float pixel = static_cast<float>(level) * (1.f / 255.f);
        values_.push_back((pixel - network.mean[c]) * (1.f / network.std[c]));
      }
    }
  }

  // Into an activation whose pixels have no channels but the image's; `to` is pixel (0, 0).
  void take(const void* image, PixelType type, const Layout& l, float* to) const {
    const std::size_t row = static_cast<std::size_t>(l.w) * l.c;
    const auto* pixels = static_cast<const std::uint8_t*>(image);
    const auto* floats = static_cast<const float*>(image);
    for (int h = 0; h < l.h; ++h, to += l.row) {
      if (type == PixelType::f32) {
        std::memcpy(to, floats + h * row, row * sizeof(float));
        continue;
      }
      float* value = to;
      for (int w = 0; w < l.w; ++w) {
        for (int c = 0; c < l.c; ++c) *value++ = values_[static_cast<std::size_t>(c) * 256 + *pixels++];
      }
    }
  }

 private:
  std::vector<float> values_;  // (channels, 256): the normalised value of a byte
};

}  // namespace fracskip
