#include "plan/pieces.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace fracskip {
namespace {

// Integers to which float32 is exact: a depthwise convolution's sums must stay below.
constexpr std::int64_t kExactFloats = std::int64_t{1} << 24;

}  // namespace

Conv piece_of(const Op& op, const Terms& terms, const Grouping& grouping, int piece, float top, float factor) {
  const int first = piece * grouping.together, groups = std::min(grouping.together, op.groups - first);
  const int taken = op.taken / op.groups, given = op.given / op.groups;
  const int taps = op.window.kernel_h * op.window.kernel_w;
  Conv conv;
  conv.in = groups * taken;
  conv.out = groups * given;
  conv.window = op.window;
  const auto spread = [&](const auto& from, auto& to) {
    to.assign(static_cast<std::size_t>(conv.out) * taps * conv.in, 0);
    for (int o = 0; o < conv.out; ++o) {
      const int group = o / given;
      for (int tap = 0; tap < taps; ++tap) {
        const auto row = (static_cast<std::size_t>(first) * given + o) * taps + tap;
        std::copy_n(&from[row * taken], taken, &to[(static_cast<std::size_t>(o) * taps + tap) * conv.in + group * taken]);
      }
    }
  };
  if (terms.is_integer()) {
    spread(terms.weight_i8, conv.weight_i8);
    conv.most_level = static_cast<int>(top);
    conv.scale.assign(&terms.scale[static_cast<std::size_t>(first) * given], &terms.scale[static_cast<std::size_t>(first) * given] + conv.out);
  } else {
    spread(terms.weight_f32, conv.weight_f32);
    for (float& weight : conv.weight_f32) weight *= factor;
  }
  conv.bias.assign(&terms.bias[static_cast<std::size_t>(first) * given], &terms.bias[static_cast<std::size_t>(first) * given] + conv.out);
  return conv;
}

bool is_exact(const Op& op, const Terms& terms, float top) {
  const auto taps = static_cast<std::size_t>(op.window.kernel_h) * op.window.kernel_w;
  for (std::size_t c = 0; c < terms.weight_i8.size() / taps; ++c) {
    std::int64_t sum = 0;
    for (std::size_t tap = 0; tap < taps; ++tap) sum += std::abs(terms.weight_i8[c * taps + tap]);
    if (sum * static_cast<std::int64_t>(top) >= kExactFloats) return false;
  }
  return true;
}

std::shared_ptr<const DepthwiseStep::Weights> depthwise_weights(const Op& op, const Terms& terms, int channels) {
  const int taps = op.window.kernel_h * op.window.kernel_w;
  auto made = std::make_shared<DepthwiseStep::Weights>();
  made->taps = Buffer(sizeof(float) * static_cast<std::size_t>(taps) * channels);
  for (int c = 0; c < op.given; ++c) {
    for (int tap = 0; tap < taps; ++tap) {
      const std::size_t at = static_cast<std::size_t>(c) * taps + tap;
      made->taps.as<float>()[static_cast<std::size_t>(tap) * channels + c] =
          terms.is_integer() ? static_cast<float>(terms.weight_i8[at]) : terms.weight_f32[at];
    }
  }
  if (terms.is_integer()) made->scale = padded(terms.scale.data(), op.given, channels);
  made->bias = padded(terms.bias.data(), op.given, channels);
  return made;
}

}  // namespace fracskip
