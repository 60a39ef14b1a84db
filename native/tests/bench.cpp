// Times the kernels; see bench.hpp.
#include "bench.hpp"

#include <chrono>
#include <cstdio>

#include "problem.hpp"

namespace fracskip {
namespace {

void bench(const Case& which, Isa isa, bool winograd) {
  std::mt19937 random(1);
  Problem problem(which, random);
  const Convolution kernel(problem.conv, kernel_set(isa), Forms{winograd, which.half(), true, problem.in.layout.pixel});
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
  std::printf("%-26s %3dx%-3d %4d -> %3d %dx%d/%d%s, %d bits: %7.2f us (min %7.2f), %6.1f GMAC/s\n", kernel.kernel_name().c_str(), which.h, which.w,
              which.in, which.out, which.kernel_h, which.kernel_w, which.stride, which.residual == Residual::none ? "" : " + residual", which.bits, times[times.size() / 2], times[0], macs / times[times.size() / 2] / 1e3);
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

// A residual block's two convolutions at every width.
void bench_widths(Isa isa) {
  for (const int bits : {8, 6, 4, 3, 2}) {
    for (const Residual residual : {Residual::none, Residual::u8}) {
      const auto one = [&](int size, int channels) {
        bench({size, size, channels, channels, 3, 3, 1, 1, Element::u8, residual, Element::u8, false, 1.f, bits, true}, isa, true);
      };
      one(32, 16);
      one(16, 32);
      one(8, 64);
    }
  }
}

void bench_others(Isa isa) {
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

}  // namespace

void bench_all(bool widths_alone) {
  for (const Isa isa : {Isa::avx2, Isa::avx512_vnni, Isa::amx}) {
    if (!isa_supported(isa)) continue;
    const KernelState state(kernel_set(isa));
    bench_widths(isa);
    if (!widths_alone) bench_others(isa);
  }
}

}  // namespace fracskip
