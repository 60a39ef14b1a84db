// Resizing by plain loops.
#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace {

std::uint8_t level(std::int32_t sum) {
  const std::int32_t value = (sum + (1 << (kResizeBits - 1))) >> kResizeBits;
  return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

void rows(const std::uint8_t* in, std::uint8_t* out, int row_bytes, const ResizeTable& table) {
  for (int y = 0; y < table.outputs; ++y) {
    const std::uint8_t* from = in + static_cast<std::ptrdiff_t>(table.first[y]) * row_bytes;
    const std::int16_t* weights = table.weights + static_cast<std::ptrdiff_t>(y) * table.room;
    for (int b = 0; b < row_bytes; ++b) {
      std::int32_t sum = 0;
      for (int t = 0; t < table.taps; ++t) sum += weights[t] * from[static_cast<std::ptrdiff_t>(t) * row_bytes + b];
      *out++ = level(sum);
    }
  }
}

void columns(const std::uint8_t* in, std::uint8_t* out, int rows, int width, int channels, const ResizeTable& table) {
  for (int y = 0; y < rows; ++y, in += static_cast<std::ptrdiff_t>(width) * channels) {
    for (int x = 0; x < table.outputs; ++x) {
      const std::uint8_t* from = in + static_cast<std::ptrdiff_t>(table.first[x]) * channels;
      const std::int16_t* weights = table.weights + static_cast<std::ptrdiff_t>(x) * table.room;
      for (int c = 0; c < channels; ++c) {
        std::int32_t sum = 0;
        for (int t = 0; t < table.taps; ++t) sum += weights[t] * from[static_cast<std::ptrdiff_t>(t) * channels + c];
        *out++ = level(sum);
      }
    }
  }
}

}  // namespace

constexpr ResizeKernels kScalarResize = {rows, columns};

}  // namespace fracskip
