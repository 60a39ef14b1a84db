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
  ImageReader(const Network& network, const ValueKernels& kernels) : pixels_(kernels.pixels) {
    for (int c = 0; c < network.channels + kBlock; ++c) {
      const auto channel = static_cast<std::size_t>(c % network.channels);
      mean_.push_back(network.mean[channel]);
      inverse_.push_back(1.f / network.std[channel]);
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
      pixels_({pixels, to, static_cast<std::ptrdiff_t>(row), l.c, mean_.data(), inverse_.data()});
      pixels += row;
    }
  }

 private:
  PixelFunction pixels_;
  std::vector<float> mean_, inverse_;  // see `PixelArgs`
};

}  // namespace fracskip
