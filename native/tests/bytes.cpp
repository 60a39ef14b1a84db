// Weights that just qualify for Winograd's algorithm in bytes, and weights that just do not, under levels that take sums to
// their limits: the kernel is the intended one, and every output what plain loops give.
#include "bytes.hpp"

#include <cstdio>
#include <string>

#include "plan/winograd_bytes.hpp"
#include "problem.hpp"

namespace fracskip {
namespace {

// As many channels of the same weights as 16-bit sums hold, worked out by hand.
struct Limit {
  const char* what;
  int bits, rows, channels;
  int weights[9];
};
constexpr Limit kLimits[] = {
    {"60 * 7 * 156 = 65520 in a halved position", 4, 2, 156, {0, 0, 0, 0, 7, 0, 0, 0, 0}},
    {"2 * 30 * 21 * 52 = 65520 in a halved column", 4, 2, 52, {7, 0, -7, 7, 0, -7, 7, 0, -7}},
    {"15 * 14 * 156 = 32760 in an output", 4, 2, 156, {7, 0, -7, 0, 0, 0, -7, 0, 7}},
    {"84 * 6 * 130 = 65520 in a halved position", 3, 4, 130, {0, 0, 0, 0, 3, 0, 0, 0, 0}},
    {"7 * 6 * 97 = 4074 in an output", 3, 4, 97, {3, 0, -3, 0, 0, 0, -3, 0, 3}},
};

int failures = 0;

void expect(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::printf("FAIL %s\n", what.c_str());
}

Case of_bits(int bits, int channels) {
  return {7, 9, channels, 18, 3, 3, 1, 1, Element::u8, Residual::none, Element::f32, false, 1.f, bits};
}

// Outputs' weights, in turn as they are, negative and 0.
Problem problem_of(const Case& which, const int (&weights)[9]) {
  std::mt19937 random(1);
  Problem problem(which, random);
  for (int o = 0; o < which.out; ++o) {
    problem.conv.scale[o] = 1.f;
    problem.conv.bias[o] = 0.f;
    for (int tap = 0; tap < 9; ++tap) {
      for (int c = 0; c < which.in; ++c) {
        problem.conv.weight_i8[(static_cast<std::size_t>(o) * 9 + tap) * which.in + c] = static_cast<std::int8_t>(weights[tap] * (o % 3 == 0 ? 1 : o % 3 == 1 ? -1 : 0));
      }
    }
  }
  return problem;
}

// Levels of 0 and the largest, everywhere, in stripes or in squares.
void check_outputs(Problem& problem, const Convolution& kernel, const std::string& what) {
  const int top = problem.conv.most_level;
  for (int pattern = 0; pattern < 6; ++pattern) {
    for (int h = 0; h < problem.c.h; ++h) {
      for (int w = 0; w < problem.c.w; ++w) {
        const int which[] = {1, w % 2, (w + 1) % 2, h % 2, (h + w) % 2, (h / 2 + w / 2) % 2};
        std::memset(problem.in.at<std::uint8_t>(h, w), which[pattern] * top, static_cast<std::size_t>(problem.c.in));
      }
    }
    Image out = make_image(problem.out_h, problem.out_w, problem.c.out, 1, Element::f32);
    Buffer sums(4 * round_up(problem.c.out, kBlock)), none;
    Buffer scratch(kernel.scratch_bytes(problem.bind(kernel, out, sums, none)));
    ConvArgs args = problem.bind(kernel, out, sums, scratch);
    args.relu = false;
    kernel.run(args);
    bool good = true;
    for (int h = 0; h < problem.out_h; ++h) {
      for (int w = 0; w < problem.out_w; ++w) {
        for (int o = 0; o < problem.c.out; ++o) good &= out.value(h, w, o) == static_cast<float>(problem.accumulator(h, w, o));
      }
    }
    expect(good, kernel.kernel_name() + ", levels of pattern " + std::to_string(pattern) + ": " + what);
  }
}

void check_limit(const Limit& limit, int more) {
  const std::string what = std::string(limit.what) + (more ? ", and more" : "");
  Problem problem = problem_of(of_bits(limit.bits, limit.channels + more), limit.weights);
  for (const bool pairs : {false, true}) expect(ByteWeights(problem.conv, limit.rows, pairs).short_sums() == !more, what);
  for (const Isa isa : {Isa::avx2, Isa::avx512_vnni, Isa::neon}) {
    if (!isa_supported(isa)) continue;
    const Convolution kernel(problem.conv, kernel_set(isa), Forms{});
    const std::string name = std::string(isa_name(isa)) + "_int8_winograd_" + std::to_string(limit.rows) + "x2" + (more ? "_wide" : "");
    if (isa == Isa::avx2 || (isa == Isa::neon && limit.rows == 4)) expect(kernel.kernel_name() == name, what + ": " + kernel.kernel_name());
    check_outputs(problem, kernel, what);
  }
}

void check_operands() {
  const auto weights = [](int bits, int rows, const int (&each)[9], bool pairs = false) {
    return ByteWeights(problem_of(of_bits(bits, 16), each).conv, rows, pairs);
  };
  for (int bits = 2; bits <= 8; ++bits) {
    const int most = (1 << (bits - 1)) - 1, small[9] = {0, 0, 0, 0, 1}, large[9] = {most, most, most, most, most, most, most, most, most};
    const std::string what = " at " + std::to_string(bits) + " bits";
    expect(weights(bits, 2, small).operands() == (bits <= 6), "levels in tiles of 2x2" + what);
    expect(weights(bits, 4, small).operands() == (bits <= 3), "levels in tiles of 4x2" + what);
    expect(weights(bits, 2, small, true).operands() == (bits <= 5), "signed levels in tiles of 2x2" + what);
    expect(weights(bits, 4, small, true).operands() == (bits <= 3), "signed levels in tiles of 4x2" + what);
    expect(weights(bits, 2, large).operands() == (bits <= 4), "weights in tiles of 2x2" + what);
    expect(weights(bits, 4, large).operands() == (bits <= 3), "weights in tiles of 4x2" + what);
  }
  expect(weights(5, 2, {14, 14, 14, 14, 15, 14, 14, 14, 14}).operands(), "a transformed weight of 127");
  expect(!weights(5, 2, {14, 14, 14, 15, 15, 14, 14, 14, 14}).operands(), "a transformed weight of 128");
  // Two channels of a lane: 252 * (65 + 65) = 32760.
  expect(weights(6, 2, {8, 8, 8, 8, 1, 8, 8, 8, 8}).operands(), "two transformed weights of 65");
  expect(!weights(6, 2, {8, 8, 8, 8, 2, 8, 8, 8, 8}).operands(), "two transformed weights of 66");
  // 39 groups of them: 60 * 14 * 39 = 32760.
  Problem problem = problem_of(of_bits(4, 160), {0, 0, 0, 0, 7, 0, 0, 0, 0});
  expect(ByteWeights(problem.conv, 2).run() == 39, "a run of 39 groups");
  check_outputs(problem, Convolution(problem.conv, kernel_set(isa_supported(Isa::avx2) ? Isa::avx2 : Isa::scalar), Forms{}), "runs");
  // 48 groups of signed levels, in whole blocks of channels: (112 + 112) * 3 * 48 = 32256.
  Problem pairs = problem_of(of_bits(3, 208), {0, 0, 0, 0, 3, 0, 0, 0, 0});
  expect(ByteWeights(pairs.conv, 4, true).run() == 48, "a run of 48 groups");
  if (!isa_supported(Isa::neon)) return;
  const Convolution kernel(pairs.conv, kernel_set(Isa::neon), Forms{});
  expect(kernel.kernel_name() == "neon_int8_winograd_4x2_wide", "runs: " + kernel.kernel_name());
  check_outputs(pairs, kernel, "runs of signed levels");
}

// Every level through the 16-bit product, pixels side by side and apart, whole vectors and not.
void check_relevel(const KernelSet& set) {
  std::mt19937 random(3);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  for (int round = 0; round < 50; ++round) {
    const int channels = 16 * pick(1, 3);
    Image in = make_image(pick(1, 9), pick(1, 9), channels, 1, Element::u8), out = make_image(in.layout.h, in.layout.w, channels, 1, Element::u8);
    fill<std::uint8_t>(in, [&] { return pick(0, 255); });
    StageArgs a{};
    a.in = in.pixel(0, 0);
    a.in_row = in.layout.row;
    a.in_pixel = in.layout.pixel;
    a.h = in.layout.h;
    a.w = in.layout.w;
    a.channels = a.used = channels > 16 && round % 3 == 0 ? 16 : channels;
    a.out = out.pixel(0, 0);
    a.out_row = out.layout.row;
    a.out_pixel = out.layout.pixel;
    a.factor16 = static_cast<std::uint16_t>(pick(0, 60000));
    a.begin16 = static_cast<std::uint16_t>(pick(1, 5000));
    a.shift16 = pick(1, 15);
    a.top = static_cast<float>((1 << pick(2, 7)) - 1);
    a.zero = static_cast<float>(round % 2);
    a.border = round % 2;
    set.values->relevel_short(a);
    bool good = true;
    for (int h = -1; h <= a.h; ++h) {
      for (int w = -1; w <= a.w; ++w) {
        const bool inside = h >= 0 && w >= 0 && h < a.h && w < a.w;
        for (int c = 0; c < (inside ? a.channels : channels); ++c) {
          const int level = inside ? std::min((in.at<std::uint8_t>(h, w)[c] * a.factor16 / 256 + a.begin16) >> a.shift16, static_cast<int>(a.top)) : a.border;
          good &= level == out.at<std::uint8_t>(h, w)[c];
        }
      }
    }
    expect(good, std::string(set.name) + ", levels by a 16-bit product");
  }
}

}  // namespace

int check_bytes() {
  const KernelState state(kernel_set(best_isa()));
  for (const Limit& limit : kLimits) {
    check_limit(limit, 0);
    check_limit(limit, 1);
  }
  check_operands();
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512_vnni}) {
    if (isa_supported(isa) && kernel_set(isa).values->relevel_short) check_relevel(kernel_set(isa));
  }
  std::printf("%zu limits of sums in 16 bits, %d failures\n", std::size(kLimits), failures);
  return failures != 0;
}

}  // namespace fracskip
