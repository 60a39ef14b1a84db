// Images brought to a smaller size: antialiased bicubic, in integers (docs/bundle.md, "Resizing").
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/common/kernels.hpp"

namespace fracskip {

// What the pixels of one axis become: output x is the sum of `taps` inputs from `first[x]` on, times its weights.
class ResizeAxis {
 public:
  // 1 <= to <= from <= kMaxResized.
  ResizeAxis(int from, int to);

  ResizeTable table() const;

 private:
  int taps_ = 0, room_ = 0;
  std::vector<std::int32_t> first_;
  std::vector<std::int16_t> weights_;  // (to, room), zeros beyond the taps
};

class Resizer {
 public:
  Resizer(int from_height, int from_width, int height, int width, int channels, const ResizeKernels& kernels);

  std::size_t bytes() const;          // of a resized image
  std::size_t scratch_bytes() const;  // what lies between both passes
  // Zeroed once, `scratch` may be used again as it is.
  void run(const std::uint8_t* image, std::uint8_t* out, std::uint8_t* scratch) const;

 private:
  const ResizeKernels& kernels_;
  int height_, from_width_, width_, channels_;
  ResizeAxis rows_, columns_;
};

}  // namespace fracskip
