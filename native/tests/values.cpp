#include "values.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/isa.hpp"
#include "plan/memory.hpp"

namespace fracskip {
namespace {

double act_of(Act act, double x) {
  const auto relu6 = [](double y) { return std::min(std::max(y, 0.0), 6.0); };
  switch (act) {
    case Act::none: return x;
    case Act::relu: return std::max(x, 0.0);
    case Act::relu6: return relu6(x);
    case Act::hardsigmoid: return relu6(x + 3) / 6;
    case Act::hardswish: return x * relu6(x + 3) / 6;
    case Act::sigmoid: return 1 / (1 + std::exp(-x));
    case Act::silu: return x / (1 + std::exp(-x));
    case Act::gelu: return x * 0.5 * (1 + std::erf(x * std::sqrt(0.5)));
  }
  return 0;
}

class Checks {
 public:
  Checks(const KernelSet& set, unsigned seed) : set_(set), values_(*set.values), random_(seed) {}

  int run(int rounds) {
    for (int round = 0; round < rounds; ++round) {
      pixels();
      norm_and_mean();
      stage();
      image();
      round_and_mean();
      pool();
      pool_levels();
      depthwise();
    }
    for (int act = 0; act < 8; ++act) curve(static_cast<Act>(act));
    return failures_;
  }

 private:
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  float real(float most = 4.f) { return std::uniform_real_distribution<float>(-most, most)(random_); }
  Act any_act() { return static_cast<Act>(pick(0, 7)); }

  void expect(const std::string& what, double found, double wanted, double scale) {
    if (std::abs(found - wanted) <= 2e-6 * std::max(1.0, scale)) return;
    if (++failures_ < 30) std::printf("FAIL %s %s: %.9g, not %.9g\n", set_.name, what.c_str(), found, wanted);
  }

  // Values with padded channels of zeros.
  struct Values {
    int pixels, used, channels;
    std::vector<float> data;
    float& at(int p, int c) { return data[static_cast<std::size_t>(p) * channels + c]; }
  };
  Values make(int pixels, int used) {
    Values v{pixels, used, round_up(used, kBlock), {}};
    v.data.resize(static_cast<std::size_t>(pixels) * v.channels);
    for (int p = 0; p < pixels; ++p) {
      for (int c = 0; c < used; ++c) v.at(p, c) = real();
    }
    return v;
  }

  // Every activation where it bends, and far out.
  void curve(Act act) {
    Values in = make(4001, 16), out = in;
    for (int p = 0; p < in.pixels; ++p) {
      for (int c = 0; c < 16; ++c) in.at(p, c) = static_cast<float>((p - 2000) * 0.01 * (c < 8 ? 1 : 10) + c * 0.0007);
    }
    ValueArgs a{};
    a.in = in.data.data();
    a.out = out.data.data();
    a.pixels = in.pixels;
    a.channels = a.used = 16;
    a.act = act;
    values_.act(a);
    for (int p = 0; p < in.pixels; ++p) {
      for (int c = 0; c < 16; ++c) {
        const double x = in.at(p, c);
        expect("act " + std::to_string(static_cast<int>(act)) + " of " + std::to_string(x), out.at(p, c), act_of(act, x), 0.25 * std::abs(x));
      }
    }
  }

  void pixels() {
    Values in = make(pick(1, 40), pick(1, 50)), other = in;
    const bool spread = pick(0, 1);
    for (int p = 0; p < in.pixels; ++p) {
      for (int c = 0; c < in.used; ++c) other.at(p, c) = real();
    }
    std::vector<float> gain(static_cast<std::size_t>(in.channels)), bias(gain);
    for (int c = 0; c < in.used; ++c) {
      gain[c] = real();
      bias[c] = real();
    }
    const int kind = pick(0, 3);
    Values out = in;
    const bool in_place = pick(0, 1);
    ValueArgs a{};
    a.in = in_place ? out.data.data() : in.data.data();
    a.other = other.data.data();
    a.out = out.data.data();
    a.pixels = in.pixels;
    a.channels = in.channels;
    a.used = in.used;
    a.spread = spread;
    a.act = any_act();
    a.gain = gain.data();
    a.bias = bias.data();
    const ValueFunction functions[] = {values_.act, values_.add, values_.mul, values_.affine};
    functions[kind](a);
    for (int p = 0; p < in.pixels; ++p) {
      for (int c = 0; c < in.channels; ++c) {
        const double x = in.at(p, c), y = other.at(spread ? 0 : p, c);
        const double value = kind == 0 ? x : kind == 1 ? x + y : kind == 2 ? x * y : x * gain[c] + bias[c];
        expect("value " + std::to_string(kind), out.at(p, c), c < in.used ? act_of(a.act, value) : 0.0, std::abs(value));
      }
    }
  }

  void norm_and_mean() {
    Values in = make(pick(1, 200), pick(1, 60)), out = in;
    std::vector<float> gain(static_cast<std::size_t>(in.channels)), bias(gain);
    for (int c = 0; c < in.used; ++c) {
      gain[c] = real();
      bias[c] = real();
    }
    ValueArgs a{};
    a.in = in.data.data();
    a.out = out.data.data();
    a.pixels = in.pixels;
    a.channels = in.channels;
    a.used = in.used;
    a.gain = gain.data();
    a.bias = bias.data();
    a.eps = 1e-3f;
    values_.norm(a);
    for (int p = 0; p < in.pixels; ++p) {
      double mean = 0, squares = 0;
      for (int c = 0; c < in.used; ++c) mean += in.at(p, c);
      mean /= in.used;
      for (int c = 0; c < in.used; ++c) squares += (in.at(p, c) - mean) * (in.at(p, c) - mean);
      for (int c = 0; c < in.channels; ++c) {
        const double value = (in.at(p, c) - mean) / std::sqrt(squares / in.used + a.eps) * gain[c] + bias[c];
        expect("norm", out.at(p, c), c < in.used ? value : 0.0, 40.0);
      }
    }
    values_.mean(a);
    for (int c = 0; c < in.channels; ++c) {
      double sum = 0;
      for (int p = 0; p < in.pixels; ++p) sum += in.at(p, c);
      expect("mean", out.data[static_cast<std::size_t>(c)], sum / in.pixels, 1.0);
    }
  }

  void stage() {
    const int h = pick(1, 9), w = pick(1, 9), used = pick(1, 40), border = pick(0, 3);
    Values in = make(h * w, used);
    std::vector<float> factor(static_cast<std::size_t>(in.channels));
    for (int c = 0; c < used; ++c) factor[c] = real();
    const bool from_levels = pick(0, 1), levels = pick(0, 1), as_they_are = from_levels && levels && pick(0, 2) == 0;
    const bool multiply = !as_they_are && pick(0, 1);
    std::vector<std::uint8_t> taken(in.data.size());
    const float step = 0.02f * static_cast<float>(pick(1, 3)), in_zero = pick(0, 1) ? static_cast<float>(pick(0, 255)) : 0.f;
    for (std::size_t i = 0; from_levels && i < taken.size(); ++i) {
      taken[i] = static_cast<std::uint8_t>(pick(0, 255));
      in.data[i] = (static_cast<float>(taken[i]) - in_zero) * step;
    }
    const Layout layout = Layout::make(h, w, used, border, levels ? Element::u8 : Element::f32);
    Buffer buffer(layout.bytes());
    std::fill_n(buffer.as<std::uint8_t>(), buffer.size(), std::uint8_t{77});
    StageArgs a{};
    a.in = from_levels ? static_cast<const void*>(taken.data()) : in.data.data();
    a.step = step;
    a.in_zero = in_zero;
    a.factor = multiply ? factor.data() : nullptr;
    a.act = as_they_are || pick(0, 1) ? Act::none : any_act();
    a.used = used;
    a.h = h;
    a.w = w;
    a.channels = in.channels;
    a.in_pixel = in.channels;
    a.in_row = static_cast<std::ptrdiff_t>(w) * in.channels;
    a.out = buffer.as<char>() + layout.origin() * static_cast<std::ptrdiff_t>(layout.bytes_each());
    a.out_row = layout.row;
    a.out_pixel = layout.pixel;
    a.top = static_cast<float>((1 << pick(2, 8)) - 1);
    a.zero = pick(0, 1) ? static_cast<float>(pick(0, static_cast<int>(a.top))) : 0.f;
    a.scale = a.top / 5;
    a.border = a.zero != 0.f ? border : 0;
    if (as_they_are) values_.copy_levels(a);
    else if (from_levels) (levels ? values_.relevel : values_.values)(a);
    else (levels ? values_.levels : values_.copy)(a);
    for (int y = -border; y < h + border; ++y) {
      for (int x = -border; x < w + border; ++x) {
        const bool inside = y >= 0 && x >= 0 && y < h && x < w;
        for (int c = 0; c < (from_levels && !levels ? in.channels : used); ++c) {
          const std::ptrdiff_t at = layout.origin() + y * layout.row + static_cast<std::ptrdiff_t>(x) * layout.pixel + c;
          if (!inside) {
            if (levels) expect("border", buffer.as<std::uint8_t>()[at], a.border ? a.zero : 77.0, 0);
            continue;
          }
          if (as_they_are) {
            expect("levels as they are", buffer.as<std::uint8_t>()[at], taken[static_cast<std::size_t>((y * w + x) * in.channels + c)], 0);
            continue;
          }
          if (c >= used) {
            expect("padding", buffer.as<float>()[at], 0, 0);
            continue;
          }
          const double value = act_of(a.act, static_cast<double>(in.at(y * w + x, c)) * (multiply ? factor[c] : 1.f));
          if (!levels) {
            expect("copy", buffer.as<float>()[at], value, std::abs(value));
            continue;
          }
          // A value on the edge between two levels may be either's, unless nothing is rounded before.
          const double level = std::min(std::max(std::nearbyint(static_cast<float>(value) * a.scale) + a.zero, 0.f), a.top);
          const double edge = std::abs(std::abs(value * a.scale - std::floor(value * a.scale)) - 0.5);
          expect("levels", buffer.as<std::uint8_t>()[at], edge < 1e-4 && (multiply || a.act > Act::relu6) ? buffer.as<std::uint8_t>()[at] : level, 0);
        }
      }
    }
  }

  // Bytes to normalised values, exactly as documented, and these to levels that lie four bytes apart.
  void image() {
    const int h = pick(1, 9), w = pick(1, 150), used = pick(1, kImagePixel), border = pick(0, 3);
    const Layout from = Layout::make(h, w, used, border, Element::f32, 1), to = Layout::make(h, w, used, border, Element::u8, kImagePixel);
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(w) * used);
    std::vector<float> mean, inverse;
    for (int c = 0; c < used + kBlock; ++c) {
      mean.push_back(c < used ? real() : mean[static_cast<std::size_t>(c - used)]);
      inverse.push_back(c < used ? real() + 2.f : inverse[static_cast<std::size_t>(c - used)]);
    }
    Buffer in(from.bytes()), out(to.bytes());
    std::fill_n(out.as<std::uint8_t>(), out.size(), std::uint8_t{77});
    for (int y = 0; y < h; ++y) {
      for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(pick(0, 255));
      float* row = in.as<float>() + from.origin() + y * from.row;
      values_.pixels({bytes.data(), row, static_cast<std::ptrdiff_t>(bytes.size()), used, mean.data(), inverse.data()});
      for (std::size_t i = 0; i < bytes.size(); ++i) {
        const std::size_t c = i % static_cast<std::size_t>(used);
        expect("pixels", row[i], (static_cast<float>(bytes[i]) * (1.f / 255.f) - mean[c]) * inverse[c], 0);
      }
    }
    StageArgs a{};
    a.in = in.as<float>() + from.origin();
    a.in_row = from.row;
    a.in_pixel = a.channels = a.used = used;
    a.h = h;
    a.w = w;
    a.out = out.as<std::uint8_t>() + to.origin();
    a.out_row = to.row;
    a.out_pixel = to.pixel;
    a.top = static_cast<float>((1 << pick(2, 8)) - 1);
    a.zero = pick(0, 1) ? static_cast<float>(pick(0, static_cast<int>(a.top))) : 0.f;
    a.scale = a.top / 5;
    a.border = a.zero != 0.f ? border : 0;
    values_.levels_of_image(a);
    for (int y = -border; y < h + border; ++y) {
      for (int x = -border; x < w + border; ++x) {
        const bool inside = y >= 0 && x >= 0 && y < h && x < w;
        for (int c = 0; c < (inside ? used : kImagePixel); ++c) {
          const double found = out.as<std::uint8_t>()[to.origin() + y * to.row + x * to.pixel + c];
          const float value = inside ? in.as<float>()[from.origin() + y * from.row + x * from.pixel + c] : 0.f;
          if (inside) expect("image", found, std::min(std::max(std::nearbyint(value * a.scale) + a.zero, 0.f), a.top), 0);
          else expect("image's border", found, a.border ? a.zero : 77.0, 0);
        }
      }
    }
  }

  void round_and_mean() {
    Values in = make(pick(1, 60), pick(1, 40)), other = make(in.pixels, in.used);
    for (float& x : in.data) x *= 60.f;
    std::vector<std::uint8_t> levels(in.data.size()), out(in.data.size());
    for (std::uint8_t& level : levels) level = static_cast<std::uint8_t>(pick(0, 255));
    RoundArgs a{};
    a.in = in.data.data();
    a.act = pick(0, 1) ? Act::none : Act::relu;
    const int kind = pick(0, 2);
    a.residual_type = kind == 0 ? Residual::none : kind == 1 ? Residual::u8 : Residual::f32;
    a.residual = kind == 0 ? nullptr : kind == 1 ? static_cast<const void*>(levels.data()) : other.data.data();
    a.out = out.data();
    a.count = static_cast<std::ptrdiff_t>(out.size());
    values_.round(a);
    for (std::size_t i = 0; i < out.size(); ++i) {
      float y = a.act == Act::relu ? std::max(in.data[i], 0.f) : in.data[i];
      if (kind > 0) y += kind == 1 ? static_cast<float>(levels[i]) : other.data[i];
      expect("round", out[i], std::nearbyint(std::min(std::max(y, 0.f), 255.f)), 0);
    }
    const int zero = pick(0, 255);
    LevelMeanArgs mean{};
    mean.in = levels.data();
    mean.in_row = in.channels;  // columns alone: rows may have gaps between them
    mean.out = other.data.data();
    mean.h = in.pixels;
    mean.w = 1;
    if (pick(0, 1)) std::swap(mean.h, mean.w);
    mean.channels = in.channels;
    mean.used = in.used;
    mean.step = 0.5f;
    mean.zero = zero;
    values_.level_mean(mean);
    for (int c = 0; c < in.channels; ++c) {
      double sum = 0;
      for (int p = 0; p < in.pixels; ++p) sum += levels[static_cast<std::size_t>(p * in.channels + c)];
      expect("level mean", other.data[static_cast<std::size_t>(c)], c < in.used ? (sum / in.pixels - zero) * 0.5 : 0.0, 255);
    }
  }

  PoolArgs windows() {
    PoolArgs a{};
    a.in_h = pick(1, 12);
    a.in_w = pick(1, 12);
    a.kernel_h = pick(1, std::min(5, a.in_h));
    a.kernel_w = pick(1, std::min(5, a.in_w));
    a.stride_h = pick(1, 3);
    a.stride_w = pick(1, 3);
    a.pad_top = pick(0, a.kernel_h / 2);
    a.pad_left = pick(0, a.kernel_w / 2);
    a.out_h = (a.in_h + a.pad_top + pick(0, a.kernel_h / 2) - a.kernel_h) / a.stride_h + 1;
    a.out_w = (a.in_w + a.pad_left + pick(0, a.kernel_w / 2) - a.kernel_w) / a.stride_w + 1;
    return a;
  }

  void pool_levels() {
    PoolArgs a = windows();
    a.largest = true;
    const int used = pick(1, 40);
    const Layout from = Layout::dense(a.in_h, a.in_w, used, Element::u8), to = Layout::make(a.out_h, a.out_w, used, pick(0, 2), Element::u8);
    Buffer in(from.bytes()), out(to.bytes());
    for (std::ptrdiff_t i = 0; i < a.in_h * from.row; ++i) in.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(pick(0, 255));
    a.channels = from.pixel;
    a.in = in.as<void>();
    a.out = out.as<std::uint8_t>() + to.origin();
    a.out_row = to.row;
    values_.pool_levels(a);
    for (int y = 0; y < a.out_h; ++y) {
      for (int x = 0; x < a.out_w; ++x) {
        for (int c = 0; c < used; ++c) {
          int top = 0;
          for (int h = std::max(y * a.stride_h - a.pad_top, 0); h < std::min(y * a.stride_h - a.pad_top + a.kernel_h, a.in_h); ++h) {
            for (int w = std::max(x * a.stride_w - a.pad_left, 0); w < std::min(x * a.stride_w - a.pad_left + a.kernel_w, a.in_w); ++w) {
              top = std::max(top, static_cast<int>(in.as<std::uint8_t>()[h * from.row + w * from.pixel + c]));
            }
          }
          expect("pool of levels", out.as<std::uint8_t>()[to.origin() + y * to.row + x * to.pixel + c], top, 0);
        }
      }
    }
  }

  void pool() {
    PoolArgs a = windows();
    a.largest = pick(0, 1);
    a.count_padding = !a.largest && pick(0, 1);
    if (a.count_padding && pick(0, 1)) {  // windows may lie beyond the image
      a.pad_top += pick(0, 4);
      a.pad_left += pick(0, 4);
      a.out_h += pick(4, 8);
      a.out_w += pick(4, 8);
    }
    Values in = make(a.in_h * a.in_w, pick(1, 40)), out = make(a.out_h * a.out_w, in.used);
    a.channels = in.channels;
    a.in = in.data.data();
    a.out = out.data.data();
    a.out_row = static_cast<std::ptrdiff_t>(a.out_w) * a.channels;
    values_.pool(a);
    for (int y = 0; y < a.out_h; ++y) {
      for (int x = 0; x < a.out_w; ++x) {
        for (int c = 0; c < in.used; ++c) {
          double sum = 0, top = -1e30;
          int count = 0;
          for (int i = 0; i < a.kernel_h; ++i) {
            for (int j = 0; j < a.kernel_w; ++j) {
              const int h = y * a.stride_h + i - a.pad_top, w = x * a.stride_w + j - a.pad_left;
              if (h < 0 || w < 0 || h >= a.in_h || w >= a.in_w) continue;
              sum += in.at(h * a.in_w + w, c);
              top = std::max(top, static_cast<double>(in.at(h * a.in_w + w, c)));
              ++count;
            }
          }
          if (a.count_padding) count = a.kernel_h * a.kernel_w;
          expect("pool", out.at(y * a.out_w + x, c), a.largest ? top : sum / count, 1.0);
        }
      }
    }
  }

  void depthwise() {
    const int sizes[] = {1, 2, 3, 3, 3, 5, 7};
    DepthwiseArgs a{};
    a.kernel_h = sizes[pick(0, 6)];
    a.kernel_w = sizes[pick(0, 6)];
    a.stride_h = pick(1, 2);
    a.stride_w = pick(1, 2);
    a.dilation_h = pick(0, 3) ? 1 : 2;
    a.dilation_w = pick(0, 3) ? 1 : 2;
    a.out_h = pick(1, 20);
    a.out_w = pick(1, 20);
    const int used = pick(1, 50), in_h = (a.out_h - 1) * a.stride_h + (a.kernel_h - 1) * a.dilation_h + 1;
    const int in_w = (a.out_w - 1) * a.stride_w + (a.kernel_w - 1) * a.dilation_w + 1, taps = a.kernel_h * a.kernel_w;
    const bool integer = pick(0, 1), to_levels = integer && pick(0, 1);
    const Layout from = Layout::dense(in_h, in_w, used, integer ? Element::u8 : Element::f32);
    const Layout to = Layout::make(a.out_h, a.out_w, used, 1, to_levels ? Element::u8 : Element::f32);
    Buffer in(from.bytes()), out(to.bytes());
    a.channels = from.pixel;
    std::vector<float> weights(static_cast<std::size_t>(taps) * a.channels), scale(static_cast<std::size_t>(a.channels)), bias(scale);
    for (int c = 0; c < used; ++c) {
      for (int t = 0; t < taps; ++t) weights[static_cast<std::size_t>(t) * a.channels + c] = integer ? static_cast<float>(pick(-127, 127)) : real(1.f);
      scale[c] = 0.01f * std::abs(real());
      bias[c] = real();
    }
    const auto level = [&](int y, int x, int c) -> std::uint8_t& { return in.as<std::uint8_t>()[y * from.row + x * from.pixel + c]; };
    const auto value = [&](int y, int x, int c) -> float& { return in.as<float>()[y * from.row + x * from.pixel + c]; };
    for (int y = 0; y < in_h; ++y) {
      for (int x = 0; x < in_w; ++x) {
        for (int c = 0; c < used; ++c) {
          if (integer) level(y, x, c) = static_cast<std::uint8_t>(pick(0, 255));
          else value(y, x, c) = real();
        }
      }
    }
    a.in = in.as<void>();
    a.in_row = from.row;
    a.in_pixel = from.pixel;
    a.weights = weights.data();
    a.scale = scale.data();
    a.bias = bias.data();
    a.out = out.as<char>() + to.origin() * static_cast<std::ptrdiff_t>(to.bytes_each());
    a.out_row = to.row;
    a.out_pixel = to.pixel;
    a.top = 200.f;
    a.relu = pick(0, 1);
    a.most = 6.f;
    (!integer ? values_.depthwise_f32 : to_levels ? values_.depthwise_u8 : values_.depthwise_u8_to_f32)(a);
    for (int y = 0; y < a.out_h; ++y) {
      for (int x = 0; x < a.out_w; ++x) {
        for (int c = 0; c < a.channels; ++c) {
          double sum = 0;
          for (int i = 0; c < used && i < a.kernel_h; ++i) {
            for (int j = 0; j < a.kernel_w; ++j) {
              const int h = y * a.stride_h + i * a.dilation_h, w = x * a.stride_w + j * a.dilation_w;
              sum += weights[static_cast<std::size_t>(i * a.kernel_w + j) * a.channels + c] * (integer ? level(h, w, c) : value(h, w, c));
            }
          }
          const std::ptrdiff_t at = to.origin() + y * to.row + static_cast<std::ptrdiff_t>(x) * to.pixel + c;
          float wanted = integer ? static_cast<float>(sum) * scale[c] : static_cast<float>(sum);  // to the bit
          wanted += bias[c];
          if (to_levels) {
            expect("depthwise levels", out.as<std::uint8_t>()[at], std::nearbyint(std::min(std::max(wanted, 0.f), 200.f)), 0);
          } else {
            if (a.relu) wanted = std::min(std::max(wanted, 0.f), 6.f);
            if (integer && out.as<float>()[at] != wanted) expect("depthwise integers", 1, 0, 0);
            expect("depthwise", out.as<float>()[at], wanted, taps);
          }
        }
      }
    }
  }

  const KernelSet& set_;
  const ValueKernels& values_;
  std::mt19937 random_;
  int failures_ = 0;
};

}  // namespace

int check_values(int rounds) {
  int failures = 0;
  for (const Isa isa : kIsas) {
    if (isa_supported(isa)) failures += Checks(kernel_set(isa), 11).run(rounds);
  }
  std::printf("%d rounds of values, %d failures\n", rounds, failures);
  return failures;
}

}  // namespace fracskip
