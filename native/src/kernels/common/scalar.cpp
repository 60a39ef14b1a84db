// Portable kernels: the plain loops. They serve every processor and are what others are held to.
#include <cmath>

#include "kernels/common/kernels.hpp"

#define FRACSKIP_GATE_NAMESPACE gate_scalar
#include "kernels/common/gate.inl"

namespace fracskip {
namespace {

float clamp_level(float y, float top) {
  y = y < top ? y : top;  // NaN, too, becomes the top, as in minps
  return std::nearbyintf(y > 0.f ? y : 0.f);
}

// What happens to one output value once its convolution is done; `y` has scale and bias.
void emit(const ConvArgs& a, int h, int w, int channel, float y) {
  const std::ptrdiff_t at = h * a.residual_row + static_cast<std::ptrdiff_t>(w) * a.residual_pixel + channel;
  if (a.residual_type == Residual::u8) y = y + static_cast<float>(static_cast<const std::uint8_t*>(a.residual)[at]);
  if (a.residual_type == Residual::f32) y = y + static_cast<const float*>(a.residual)[at];
  const std::ptrdiff_t to = h * a.out_row + static_cast<std::ptrdiff_t>(w) * a.out_pixel + channel;
  if (a.out_type == Element::u8) {
    const auto level = static_cast<std::uint8_t>(clamp_level(y * a.input, a.top));
    static_cast<std::uint8_t*>(a.out)[to] = level;
    if (a.sums) static_cast<std::uint32_t*>(a.sums)[channel] += level;
  } else {
    if (a.relu) y = y > 0.f ? (y < a.most ? y : a.most) : 0.f;
    static_cast<float*>(a.out)[to] = y;
    if (a.sums) static_cast<float*>(a.sums)[channel] += y;
  }
}

// Weights: [block][kernel_h][kernel_w][in_channels][kBlock].
template <class In, class Weight, class Sum>
void direct(const ConvArgs& a) {
  const In* in = static_cast<const In*>(a.in);
  for (int h = 0; h < a.out_h; ++h) {
    for (int w = 0; w < a.out_w; ++w) {
      const Weight* weight = static_cast<const Weight*>(a.weights);
      for (int block = 0; block < a.out_blocks; ++block) {
        Sum sum[kBlock] = {};
        for (int y = 0; y < a.kernel_h; ++y) {
          for (int x = 0; x < a.kernel_w; ++x) {
            const In* pixel = in + (h * a.stride_h + y) * a.in_row +
                              static_cast<std::ptrdiff_t>(w * a.stride_w + x) * a.in_pixel;
            for (int channel = 0; channel < a.in_channels; ++channel, weight += kBlock) {
              const Sum value = static_cast<Sum>(pixel[channel]);
              for (int o = 0; o < kBlock; ++o) sum[o] += value * static_cast<Sum>(weight[o]);
            }
          }
        }
        for (int o = 0; o < kBlock; ++o) {
          const int channel = block * kBlock + o;
          float y = static_cast<float>(sum[o]);
          if (a.scale) y = y * a.scale[channel];
          emit(a, h, w, channel, y + a.bias[channel]);
        }
      }
    }
  }
}

}  // namespace

constexpr KernelSet kScalarKernels = [] {
  KernelSet set;
  set.name = "scalar";
  set.conv_int = direct<std::uint8_t, std::int8_t, std::int32_t>;
  set.conv_float = direct<float, float, float>;
  set.gate = gate_scalar::decide;
  set.values = &kScalarValues;
  set.resize = &kScalarResize;
  return set;
}();

}  // namespace fracskip
