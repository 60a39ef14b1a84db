// Convolutions and gates of random numbers, what they should come to, and what the kernels' drivers share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "plan/convolution.hpp"
#include "exec/engine.hpp"

namespace fracskip {

struct Case {
  int h, w, in, out, kernel_h, kernel_w, stride, pad;
  Element element;  // of the input
  Residual residual;
  Element output;
  bool extreme;       // all levels and weights at their limits
  float input = 1.f;  // of a result in levels
  int bits = 8;       // of integers
  bool small = false;  // weights as trained ones lie: most of them far from their limits
  int below = 0, beside = 0;  // what the padding at the bottom and on the right has more than that at the top and on the left
  bool integer() const { return element == Element::u8; }
  bool half() const { return element == Element::bf16; }
};

inline float from_bf16(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

struct Image {
  Layout layout;
  Buffer buffer;
  std::ptrdiff_t index(int h, int w) const { return layout.origin() + h * layout.row + static_cast<std::ptrdiff_t>(w) * layout.pixel; }
  template <class T>
  T* at(int h, int w) { return buffer.as<T>() + index(h, w); }
  void* pixel(int h, int w) { return buffer.as<char>() + index(h, w) * static_cast<std::ptrdiff_t>(layout.bytes_each()); }
  float value(int h, int w, int c) {
    if (layout.element == Element::u8) return static_cast<float>(at<std::uint8_t>(h, w)[c]);
    return layout.element == Element::bf16 ? from_bf16(at<std::uint16_t>(h, w)[c]) : at<float>(h, w)[c];
  }
};

inline Image make_image(int h, int w, int c, int border, Element element, int multiple = kBlock) {
  Image image;
  image.layout = Layout::make(h, w, c, border, element, multiple);
  image.buffer = Buffer(image.layout.bytes());
  return image;
}

template <class T, class F>
void fill(Image& image, F value) {
  for (int h = 0; h < image.layout.h; ++h)
    for (int w = 0; w < image.layout.w; ++w)
      for (int c = 0; c < image.layout.c; ++c) image.at<T>(h, w)[c] = static_cast<T>(value());
}

struct Problem {
  Case c;
  Conv conv;
  Image in, residual;
  int out_h, out_w;

  Problem(const Case& which, std::mt19937& random) : c(which) {
    conv.in = c.in;
    conv.out = c.out;
    conv.window = {c.kernel_h, c.kernel_w, c.stride, c.stride, c.pad, c.pad, c.pad + c.below, c.pad + c.beside};
    out_h = conv.window.out_h(c.h);
    out_w = conv.window.out_w(c.w);
    const std::size_t count = static_cast<std::size_t>(c.out) * c.kernel_h * c.kernel_w * c.in;
    const int most = (1 << (c.bits - 1)) - 1;
    conv.most_level = (1 << c.bits) - 1;
    std::uniform_int_distribution<int> weight(-most, most), level(0, 255), own_level(0, conv.most_level);
    std::uniform_real_distribution<float> real(-1.f, 1.f);
    std::normal_distribution<float> normal(0.f, static_cast<float>(most) / 2.5f);
    const auto few = [&](std::mt19937& from) { return std::clamp(static_cast<int>(std::lround(normal(from))), -most, most); };
    const bool image = c.integer() && c.in <= kImagePixel && c.stride > 1;
    in = make_image(c.h, c.w, c.in, conv.window.widest_pad(), c.element, image ? kImagePixel : kBlock);
    if (c.integer()) {
      for (std::size_t i = 0; i < count; ++i) conv.weight_i8.push_back(static_cast<std::int8_t>(c.extreme ? (random() % 8 ? most : -most) : c.small ? few(random) : weight(random)));
      fill<std::uint8_t>(in, [&] { return c.extreme ? conv.most_level : own_level(random); });
    } else {
      for (std::size_t i = 0; i < count; ++i) conv.weight_f32.push_back(real(random));
      if (c.half()) fill<std::uint16_t>(in, [&] { return to_bf16(real(random) + 1.f); });
      else fill<float>(in, [&] { return real(random) + 1.f; });
    }
    const float spread = c.integer() ? 64.f / (static_cast<float>(most * conv.most_level) * std::sqrt(static_cast<float>(count / c.out))) : 1.f;
    for (int o = 0; o < c.out; ++o) {
      conv.scale.push_back(spread * (1.5f + real(random)));
      conv.bias.push_back(100.f * real(random));
    }
    residual = make_image(out_h, out_w, c.out, 1, c.residual == Residual::f32 ? Element::f32 : Element::u8);
    if (c.residual == Residual::f32) fill<float>(residual, [&] { return 50.f * real(random); });
    else fill<std::uint8_t>(residual, [&] { return level(random); });
  }

  // Levels of 255 beyond the input's border.
  void surround() {
    const Layout& l = in.layout;
    std::vector<std::uint8_t> kept(in.buffer.size(), 255);
    for (int h = -l.border; h < l.h + l.border; ++h) {
      const std::size_t size = static_cast<std::size_t>(l.w + 2 * l.border) * l.pixel;
      std::memcpy(&kept[static_cast<std::size_t>(in.index(h, -l.border))], in.at<std::uint8_t>(h, -l.border), size);
    }
    std::memcpy(in.buffer.as<void>(), kept.data(), kept.size());
  }

  ConvArgs bind(const Convolution& kernel, Image& out, Buffer& sums, Buffer& scratch) {
    ConvArgs a = kernel.arguments();
    const Layout& l = in.layout;
    a.in = in.pixel(-c.pad, -c.pad);
    a.in_row = l.row;
    a.in_pixel = l.pixel;
    a.out_h = out_h;
    a.out_w = out_w;
    a.out_type = c.output;
    a.out = out.pixel(0, 0);
    a.out_row = out.layout.row;
    a.out_pixel = out.layout.pixel;
    a.residual_type = c.residual;
    a.residual = residual.pixel(0, 0);
    a.residual_row = residual.layout.row;
    a.residual_pixel = residual.layout.pixel;
    a.input = c.input;
    a.top = 200.f;
    a.relu = true;
    a.sums = sums.as<void>();
    a.scratch = scratch.as<void>();
    a.bounded = kernel.bounds(a);
    return a;
  }

  // The sum of an output's products, of integers.
  std::int64_t accumulator(int h, int w, int o) {
    std::int64_t sum = 0;
    taps(h, w, o, [&](std::size_t at, int ih, int iw, int i) { sum += conv.weight_i8[at] * static_cast<int>(in.at<std::uint8_t>(ih, iw)[i]); });
    return sum;
  }

  // The definition: exact sums, then the documented formula in float32.
  float expected(int h, int w, int o) {
    double real = 0;
    const std::int64_t exact = c.integer() ? accumulator(h, w, o) : 0;
    if (!c.integer()) {
      taps(h, w, o, [&](std::size_t at, int ih, int iw, int i) {
        const float weight = c.half() ? from_bf16(to_bf16(conv.weight_f32[at])) : conv.weight_f32[at];
        real += static_cast<double>(weight) * in.value(ih, iw, i);
      });
    }
    float y = c.integer() ? static_cast<float>(static_cast<std::int32_t>(exact)) * conv.scale[o] : static_cast<float>(real);
    y += conv.bias[o];
    if (c.residual != Residual::none) y += residual.value(h, w, o);
    if (c.output != Element::u8) return std::max(y, 0.f);
    return std::nearbyint(std::min(std::max(y * c.input, 0.f), 200.f));
  }

 private:
  // Calls `each(weight, row, column, channel)` for what an output reads of the image.
  template <class Each>
  void taps(int h, int w, int o, Each each) {
    for (int y = 0; y < c.kernel_h; ++y) {
      for (int x = 0; x < c.kernel_w; ++x) {
        const int ih = h * c.stride + y - c.pad, iw = w * c.stride + x - c.pad;
        if (ih < 0 || iw < 0 || ih >= c.h || iw >= c.w) continue;
        for (int i = 0; i < c.in; ++i) each(((static_cast<std::size_t>(o) * c.kernel_h + y) * c.kernel_w + x) * c.in + i, ih, iw, i);
      }
    }
  }
};

// A recurrent gate of random weights, its embedding in float32 or, the same values, in bfloat16.
struct RandomGate {
  static constexpr int kWidth = 10, kPadded = 16, kOptions = 8;
  Buffer embed, halves, bias, lstm, out, pooled, state;
  GateArgs args{};

  explicit RandomGate(int channels, std::uint32_t seed = 1)
      : embed(sizeof(float) * channels * kPadded), halves(sizeof(std::uint16_t) * channels * kPadded), bias(sizeof(float) * kPadded),
        lstm(sizeof(float) * (2 * kWidth + 1) * 4 * kPadded), out(sizeof(float) * (kWidth + 1) * kOptions), pooled(sizeof(float) * channels),
        state(sizeof(float) * (7 * kPadded + kOptions)) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> draw(-1.f, 1.f);
    for (Buffer* each : {&bias, &lstm, &out, &pooled}) {
      for (std::size_t i = 0; i < each->size() / sizeof(float); ++i) each->as<float>()[i] = draw(random);
    }
    for (int i = 0; i < channels * kPadded; ++i) {
      const float value = draw(random) / static_cast<float>(channels);
      std::uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      const auto half = static_cast<std::uint16_t>(bits >> 16);
      halves.as<std::uint16_t>()[i / 16 * 16 + i % 8 * 2 + i / 8 % 2] = half;  // pairs of j and j + 8
      embed.as<float>()[i] = from_bf16(half);
    }
    args.pooled = pooled.as<float>();
    args.channels = channels;
    args.width = kWidth;
    args.padded_width = kPadded;
    args.options = 3;
    args.padded_options = kOptions;
    args.recurrent = true;
    args.embed_bias = bias.as<float>();
    args.lstm = lstm.as<float>();
    args.out = out.as<float>();
    args.hidden = state.as<float>();
    args.cell = args.hidden + kPadded;
    args.work = args.cell + kPadded;
    args.scores = args.work + 5 * kPadded;
    use(false);
  }

  void use(bool bf16) {
    args.embed_bf16 = bf16;
    args.embed = bf16 ? halves.as<void>() : embed.as<void>();
  }

  std::vector<float> scores(Isa isa) {
    std::fill_n(state.as<float>(), state.size() / sizeof(float), 0.f);
    kernel_set(isa).gate(args);
    return {args.scores, args.scores + kOptions};
  }
};

}  // namespace fracskip
