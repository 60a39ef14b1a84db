// Holds every convolution kernel of this CPU to plain loops over the definition in docs/bundle.md:
// integers to the bit, floats to a tolerance. In bfloat16 the definition sees rounded values and weights. Gates are held to plain code.
// `kernels --bench [widths]` times them instead.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench.hpp"
#include "bytes.hpp"
#include "problem.hpp"
#include "resize.hpp"
#include "values.hpp"

using namespace fracskip;

namespace {

int failures = 0;

void check(const Case& which, Isa isa, bool winograd, std::mt19937& random) {
  Problem problem(which, random);
  Forms forms;
  forms.winograd = winograd;
  forms.half = which.half();
  forms.pixel = problem.in.layout.pixel;
  forms.zeros = !which.integer() || random() % 4;
  if (!forms.zeros) problem.surround();
  const Convolution kernel(problem.conv, kernel_set(isa), forms);
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
      c.in = pick(0, 5) ? pick(1, 5) * pick(1, 16) : pick(1, kImagePixel);
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
    // Stride 1 at every width: odd sizes, few channels and many, weights as trained ones lie and at their limits.
    for (int bits = 2; bits <= 6; ++bits) {
      for (int round = 0; round < rounds / 10 + 3; ++round) {
        Case c{pick(1, 35), pick(1, 35), pick(5, 130), pick(1, 40), 3, 3, 1, 1, Element::u8, static_cast<Residual>(pick(0, 2)), pick(0, 3) ? Element::u8 : Element::f32, round % 5 == 0};
        c.bits = bits;
        c.small = true;
        if (pick(0, 3) == 0) c.in = 16 * pick(1, 4);
        check(c, isa, true, random);
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

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !std::strcmp(argv[1], "--bench")) {
    bench_all(argc > 2 && !std::strcmp(argv[2], "widths"));
    return 0;
  }
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
  return check_bytes() + run_checks(rounds) + check_values(rounds) + check_gates(rounds) + check_resizing(rounds) != 0;
}
