// Holds every convolution kernel of this CPU to plain loops over the definition in docs/bundle.md:
// integers to the bit, floats to a tolerance. In bfloat16 the definition sees rounded values and weights. Gates are held to plain code.
// `kernels --bench` times them instead.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "plan/convolution.hpp"
#include "exec/engine.hpp"
#include "resize.hpp"
#include "values.hpp"

using namespace fracskip;

namespace {

struct Case {
  int h, w, in, out, kernel_h, kernel_w, stride, pad;
  Element element;  // of the input
  Residual residual;
  Element output;
  bool extreme;       // all levels and weights at their limits
  float input = 1.f;  // of a result in levels
  int bits = 8;       // of integers
  int below = 0, beside = 0;  // what the padding at the bottom and on the right has more than that at the top and on the left
  bool integer() const { return element == Element::u8; }
  bool half() const { return element == Element::bf16; }
};

float from_bf16(std::uint16_t bits) {
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

Image make_image(int h, int w, int c, int border, Element element) {
  Image image;
  image.layout = Layout::make(h, w, c, border, element);
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
    in = make_image(c.h, c.w, c.in, conv.window.widest_pad(), c.element);
    if (c.integer()) {
      for (std::size_t i = 0; i < count; ++i) conv.weight_i8.push_back(static_cast<std::int8_t>(c.extreme ? (random() % 8 ? most : -most) : weight(random)));
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
    return a;
  }

  // The definition: exact sums, then the documented formula in float32.
  float expected(int h, int w, int o) {
    double real = 0;
    std::int64_t exact = 0;
    for (int y = 0; y < c.kernel_h; ++y)
      for (int x = 0; x < c.kernel_w; ++x)
        for (int i = 0; i < c.in; ++i) {
          const int ih = h * c.stride + y - c.pad, iw = w * c.stride + x - c.pad;
          if (ih < 0 || iw < 0 || ih >= c.h || iw >= c.w) continue;
          const std::size_t at = ((static_cast<std::size_t>(o) * c.kernel_h + y) * c.kernel_w + x) * c.in + i;
          if (c.integer()) {
            exact += conv.weight_i8[at] * static_cast<int>(in.at<std::uint8_t>(ih, iw)[i]);
          } else {
            const float weight = c.half() ? from_bf16(to_bf16(conv.weight_f32[at])) : conv.weight_f32[at];
            real += static_cast<double>(weight) * in.value(ih, iw, i);
          }
        }
    float y = c.integer() ? static_cast<float>(static_cast<std::int32_t>(exact)) * conv.scale[o] : static_cast<float>(real);
    y += conv.bias[o];
    if (c.residual != Residual::none) y += residual.value(h, w, o);
    if (c.output != Element::u8) return std::max(y, 0.f);
    return std::nearbyint(std::min(std::max(y * c.input, 0.f), 200.f));
  }
};

int failures = 0;

void check(const Case& which, Isa isa, bool winograd, std::mt19937& random) {
  Problem problem(which, random);
  const Convolution kernel(problem.conv, kernel_set(isa), Forms{winograd, which.half(), true});
  Image out = make_image(problem.out_h, problem.out_w, which.out, 1, which.output);
  Buffer sums(4 * round_up(which.out, kBlock)), none;
  Buffer scratch(kernel.scratch_bytes(problem.bind(kernel, out, sums, none)));
  kernel.run(problem.bind(kernel, out, sums, scratch));
  std::vector<double> expected_sums(which.out, 0.);
  double worst = 0;
  for (int h = 0; h < problem.out_h; ++h)
    for (int w = 0; w < problem.out_w; ++w)
      for (int o = 0; o < which.out; ++o) {
        const float want = problem.expected(h, w, o);
        const float got = out.value(h, w, o);
        expected_sums[o] += got;
        const double rounding = which.output == Element::bf16 ? 1. / 256 * std::fabs(want) : 0.;
        worst = std::max(worst, std::fabs(want - got) - rounding);
      }
  // Floats: sums in another order; a level may differ by one where its value lies on the edge.
  const double allowed = which.integer() ? 0. : which.output == Element::u8 ? 1. : 1e-3;
  bool good = worst <= allowed;
  for (int o = 0; o < which.out; ++o) {
    const double got = which.output == Element::u8 ? sums.as<std::uint32_t>()[o] : sums.as<float>()[o];
    // Sums are for gates, which read no bfloat16.
    if (which.output != Element::bf16) good &= std::fabs(got - expected_sums[o]) <= (which.output == Element::u8 ? 0. : 1e-4 * (1. + expected_sums[o]));
  }
  // Nobody writes the border.
  const Layout& l = out.layout;
  const std::size_t bytes = l.bytes();
  for (int h = 0; h < l.h; ++h)
    for (int w = 0; w < l.w; ++w)
      std::memset(out.pixel(h, w), 0, l.bytes_each() * static_cast<std::size_t>(l.pixel));
  for (std::size_t i = 0; i < bytes; ++i) good &= out.buffer.as<char>()[i] == 0;
  if (!good) {
    ++failures;
    std::printf("FAIL %s: %dx%d, %d -> %d, %dx%d/%d pad %d %+d %+d, residual %d, output %d: off by %g\n", kernel.kernel_name().c_str(),
                which.h, which.w, which.in, which.out, which.kernel_h, which.kernel_w, which.stride, which.pad, which.below, which.beside,
                static_cast<int>(which.residual), static_cast<int>(which.output), worst);
  }
}

int run_checks(int rounds) {
  std::mt19937 random(7);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  int checks = 0;
  for (const Isa isa : kIsas) {
    if (!isa_supported(isa)) {
      std::printf("%s: not on this CPU, not checked\n", isa_name(isa));
      continue;
    }
    const KernelState state(kernel_set(isa));
    for (int round = 0; round < rounds; ++round) {
      Case c;
      const int kernels[][2] = {{3, 3}, {3, 3}, {3, 3}, {1, 1}, {1, 3}, {5, 5}, {7, 7}};
      const int* kernel = kernels[pick(0, 6)];
      c.kernel_h = kernel[0];
      c.kernel_w = kernel[1];
      c.stride = pick(1, 2);
      c.pad = pick(0, 3) ? std::min(c.kernel_h, c.kernel_w) / 2 : 0;
      if (pick(0, 2) == 0) {
        c.below = pick(-c.pad, 2);
        c.beside = pick(-c.pad, 2);
      }
      c.h = pick(std::max(1, c.kernel_h - 2 * c.pad - c.below), 19);
      c.w = pick(std::max(1, c.kernel_w - 2 * c.pad - c.beside), 19);
      c.in = pick(1, 5) * pick(1, 16);
      c.out = pick(1, 5) * pick(1, 10);
      const bool floats = pick(0, 2) == 0, half = kernel_set(isa).tiles_bf16 && pick(0, 1);
      c.element = !floats ? Element::u8 : half ? Element::bf16 : Element::f32;
      c.residual = static_cast<Residual>(pick(0, 2));
      c.output = pick(0, 1) ? Element::f32 : Element::u8;
      c.extreme = pick(0, 3) == 0;
      if (pick(0, 1)) c.bits = pick(2, 7);
      if (c.output == Element::u8 && pick(0, 2) == 0) c.input = 0.37f;
      if (c.half() && pick(0, 2) == 0) {
        c.output = Element::bf16;
        c.residual = Residual::none;
      }
      check(c, isa, true, random);
      check(c, isa, false, random);
      checks += 2;
    }
    // Sums in 16 bits: runs that end within the channels, with them and beyond (32 channels at 6 bits).
    for (const int channels : {4, 24, 28, 32, 36, 60, 64, 256, 1024}) {
      for (int bits = 2; bits <= 8; ++bits) {
        check({5, 6, channels, 16, 1, 1, 1, 0, Element::u8, Residual::none, Element::f32, true, 1.f, bits}, isa, true, random);
        ++checks;
      }
    }
    // The exact kernel's limit: 114 channels of extreme values still fit, at 120 it must step back.
    for (const int channels : {64, 112, 114, 115, 116, 120, 256}) {
      check({5, 6, channels, 16, 3, 3, 1, 1, Element::u8, Residual::none, Element::f32, true}, isa, true, random);
      ++checks;
    }
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}

void bench(const Case& which, Isa isa, bool winograd) {
  std::mt19937 random(1);
  Problem problem(which, random);
  const Convolution kernel(problem.conv, kernel_set(isa), Forms{winograd, which.half(), true});
  Image out = make_image(problem.out_h, problem.out_w, which.out, 1, which.output);
  Buffer sums(4 * round_up(which.out, kBlock)), none;
  Buffer scratch(kernel.scratch_bytes(problem.bind(kernel, out, sums, none)));
  const ConvArgs args = problem.bind(kernel, out, sums, scratch);
  std::vector<double> times;
  for (int i = 0; i < 41; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    for (int j = 0; j < 20; ++j) kernel.run(args);
    times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / 20);
  }
  std::sort(times.begin(), times.end());
  const double macs = static_cast<double>(problem.out_h) * problem.out_w * which.out * which.in * which.kernel_h * which.kernel_w;
  std::printf("%-26s %3dx%-3d %4d -> %3d %dx%d/%d, %d bits: %7.2f us (min %7.2f), %6.1f GMAC/s\n", kernel.kernel_name().c_str(), which.h, which.w,
              which.in, which.out, which.kernel_h, which.kernel_w, which.stride, which.bits, times[times.size() / 2], times[0], macs / times[times.size() / 2] / 1e3);
}

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

// All instruction sets and both forms of an embedding give the same bits.
int check_gates(int rounds) {
  int checks = 0;
  for (int round = 0; round < rounds; ++round) {
    RandomGate gate(1 + round * 7 % 600, static_cast<std::uint32_t>(round));
    const std::vector<float> expected = gate.scores(Isa::scalar);
    for (const Isa isa : kIsas) {
      if (!isa_supported(isa)) continue;
      for (const bool bf16 : {false, true}) {
        gate.use(bf16);
        if (std::memcmp(gate.scores(isa).data(), expected.data(), expected.size() * sizeof(float)) != 0) {
          std::printf("gate of %d channels, %s, %s: other scores than plain code's\n", gate.args.channels, isa_name(isa), bf16 ? "bfloat16" : "float32");
          return 1;
        }
        ++checks;
      }
    }
  }
  std::printf("%d gates agree\n", checks);
  return 0;
}

void bench_gate(Isa isa, int channels, bool bf16) {
  RandomGate gate(channels);
  gate.use(bf16);
  std::vector<double> times;
  int chosen = 0;
  for (int i = 0; i < 41; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    for (int j = 0; j < 1000; ++j) chosen += kernel_set(isa).gate(gate.args);
    times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / 1000);
  }
  std::sort(times.begin(), times.end());
  std::printf("%s gate, %d channels in %s, LSTM of 10: %.3f us (min %.3f)%s\n", kernel_set(isa).name, channels, bf16 ? "bfloat16" : "float32",
              times[times.size() / 2], times[0], chosen ? "" : " ");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !std::strcmp(argv[1], "--bench")) {
    for (const Isa isa : kIsas) {
      if (isa == Isa::scalar || !isa_supported(isa)) continue;
      const KernelState state(kernel_set(isa));
      for (const int channels : {16, 32, 64, 2048}) {
        for (const bool bf16 : {false, true}) bench_gate(isa, channels, bf16);
      }
      for (const Element element : {Element::u8, Element::bf16, Element::f32}) {
        if (element == Element::bf16 && !kernel_set(isa).tiles_bf16) continue;
        const bool integer = element == Element::u8;
        for (const bool winograd : {true, false}) {
          const Residual residual = element == Element::f32 ? Residual::f32 : Residual::u8;
          const Element output = element == Element::f32 ? Element::f32 : Element::u8;
          bench({32, 32, 16, 16, 3, 3, 1, 1, element, residual, output, false}, isa, winograd);
          bench({16, 16, 32, 32, 3, 3, 1, 1, element, residual, output, false}, isa, winograd);
          bench({8, 8, 64, 64, 3, 3, 1, 1, element, residual, output, false}, isa, winograd);
        }
        bench({32, 32, 16, 32, 3, 3, 2, 1, element, Residual::none, integer ? Element::u8 : Element::f32, false}, isa, true);
        bench({32, 32, 16, 32, 1, 1, 2, 0, element, Residual::none, Element::f32, false}, isa, true);
      }
      // Single taps and strides, where few bits may be faster than eight.
      for (const int bits : {8, 7, 6, 4, 2}) {
        bench({56, 56, 64, 256, 1, 1, 1, 0, Element::u8, Residual::none, Element::u8, false, 1.f, bits}, isa, true);
        bench({14, 14, 1024, 256, 1, 1, 1, 0, Element::u8, Residual::none, Element::u8, false, 1.f, bits}, isa, true);
        bench({28, 28, 128, 128, 3, 3, 2, 1, Element::u8, Residual::none, Element::u8, false, 1.f, bits}, isa, true);
        bench({14, 14, 256, 256, 3, 3, 1, 1, Element::u8, Residual::none, Element::u8, false, 1.f, bits}, isa, true);
        bench({14, 14, 256, 256, 3, 3, 1, 1, Element::u8, Residual::none, Element::u8, false, 1.f, bits}, isa, false);
      }
    }
    return 0;
  }
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
  return run_checks(rounds) + check_values(rounds) + check_gates(rounds) + check_resizing(rounds) != 0;
}
