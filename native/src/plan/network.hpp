// A network as a bundle describes it: plain values, checked by the reader, prepared by the engine.
// docs/bundle.md defines every field and the arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/common/act.hpp"

namespace fracskip {

inline constexpr int kSkipBits = 0;
inline constexpr int kMaxIntegerBits = 8;  // wider options execute in floating point
inline constexpr int kMaxHalfBits = 16;    // up to here in bfloat16 where the CPU computes in it, else in float32
inline constexpr int kFullBits = 32;
inline constexpr int kStreamBits = 8;  // of an integer stream, and of what every image executes on it

// How an option is spelled.
inline std::string option_label(int bits) {
  if (bits == kSkipBits) return "skip";
  return bits == kFullBits ? "full" : std::to_string(bits);
}

struct Window {
  int kernel_h = 1, kernel_w = 1;
  int stride_h = 1, stride_w = 1;
  int pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;

  bool pads() const { return widest_pad() > 0; }
  int widest_pad() const { return std::max({pad_top, pad_left, pad_bottom, pad_right}); }
  int out_h(int in_h) const { return (in_h + pad_top + pad_bottom - kernel_h) / stride_h + 1; }
  int out_w(int in_w) const { return (in_w + pad_left + pad_right - kernel_w) / stride_w + 1; }
};

struct Linear {
  int in = 0, out = 0;
  std::vector<float> weight;  // (out, in)
  std::vector<float> bias;
};

enum class GateKind { none, recurrent, feedforward };

struct Gate {
  GateKind kind = GateKind::none;
  int width = 0;
  bool sensitivity = false;  // outputs are logarithms of sensitivities, weighed by cost; else logits, weighed by rank
  float multiplier = 0.f;    // of cost, where none is asked for
  std::vector<Linear> embed;                     // per gated block
  std::vector<float> budget_weight, budget_bias; // (width); empty: takes no budget
  Linear lstm_input, lstm_hidden;                // (4 width, width), order i f g o; bias in input
  std::vector<Linear> out;                       // one shared, or one per gated block
  std::vector<float> block_bias;                 // (gated blocks, options); empty: none
};

enum class OpKind { conv, pool, mean, act, add, mul, affine, norm };

// Value 0 is what a program takes, value k + 1 what its op k gives.
struct Op {
  OpKind kind = OpKind::act;
  int in = 0, other = 0;    // values; `other` of add and mul alone
  int taken = 0, given = 0;  // channels of a conv; of affine and norm both are theirs
  Window window;            // of conv and pool
  int dilation_h = 1, dilation_w = 1, groups = 1;
  Act act = Act::none;
  bool largest = false, count_padding = false;  // of a pool: otherwise the mean
  float eps = 0.f;

  bool takes_two() const { return kind == OpKind::add || kind == OpKind::mul; }
  bool uses(int value) const { return in == value || (takes_two() && other == value); }
  // The window that dilated taps span.
  Window reach() const {
    Window spread = window;
    spread.kernel_h = (window.kernel_h - 1) * dilation_h + 1;
    spread.kernel_w = (window.kernel_w - 1) * dilation_w + 1;
    return spread;
  }
};

using Program = std::vector<Op>;

// Of each value, the ops that take it, in order. One that takes it twice is there once.
std::vector<std::vector<std::size_t>> takers_of(const Program& program);

// Of each op, the convolution that may give it its levels, if there is one: nothing else takes what that gives, and a
// clamp to levels does what its activation would.
std::vector<const Op*> feeders_of(const Program& program);

// Whether an op is a convolution of the very value that its program takes: of an 8-bit stream, perhaps its levels.
inline bool takes_first(const Op& op) { return op.kind == OpKind::conv && op.in == 0; }

// What tensors say of one op. Weights are (out, kernel_h, kernel_w, in / groups), C order.
struct Terms {
  std::vector<std::int8_t> weight_i8;
  std::vector<float> weight_f32, scale, gain, bias;
  float input = 0.f;  // 1 / step of an integer convolution's input; 0: that is in units of its step, or in levels
  int zero = 0;       // the level that stands for 0

  bool is_integer() const { return !weight_i8.empty(); }
};

// One way to execute a branch; skip has no terms.
struct Way {
  int bits = kSkipBits;
  std::vector<Terms> terms;  // of each op
};

struct Part {
  std::string name;
  bool gated = false, residual = false, skip_is_identity = false;
  Program branch;
  std::vector<Way> ways;  // of a gated part: the network's options, in order; else the one
  Program shortcut;       // of a residual one; empty: what the part takes
  int shortcut_bits = kFullBits;
  std::vector<Terms> shortcut_terms;
  std::vector<Act> after;
  float step = 1.f;  // what a level of what it gives stands for
  int zero = 0;      // and which stands for 0

  // Whether what it takes is added to its branch as it is, so that both are in one place.
  bool hands_on() const { return residual && shortcut.empty(); }
};

struct Network {
  int height = 0, width = 0, channels = 0, classes = 0;  // of the image, and of the logits
  std::vector<float> mean, std;
  std::vector<int> option_bits;  // of gated parts
  Gate gate;
  bool integer_stream = false;  // parts give levels of 8 bits, but for the last
  std::vector<Part> parts;
};

// A convolution of groups is executed as convolutions of `together` groups each, the last one perhaps of
// fewer: so many that they take and give whole blocks of channels. Other groups' weights in them are zero.
struct Grouping {
  int together = 1, pieces = 1;
};
Grouping grouping_of(const Op& op);

// Whether it is of one channel a group, on kernels of its own where their sums are exact.
inline bool is_depthwise(const Op& op) { return op.groups > 1 && op.groups == op.taken && op.taken == op.given; }

}  // namespace fracskip
