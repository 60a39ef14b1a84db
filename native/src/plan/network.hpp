// A network as a bundle describes it: plain values, checked by the reader, prepared by the engine.
// docs/bundle.md defines every field and the arithmetic.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

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
  int pad_h = 0, pad_w = 0;

  int out_h(int in_h) const { return (in_h + 2 * pad_h - kernel_h) / stride_h + 1; }
  int out_w(int in_w) const { return (in_w + 2 * pad_w - kernel_w) / stride_w + 1; }
};

// Weights are (out, kernel_h, kernel_w, in), C order; exactly one of the two is filled.
struct Conv {
  int in = 0, out = 0;
  Window window;
  std::vector<std::int8_t> weight_i8;
  std::vector<float> weight_f32;
  std::vector<float> scale;  // per output channel; integer convolutions only
  std::vector<float> bias;   // per output channel
  int most_level = 255;      // of what it takes; integer convolutions only

  bool is_integer() const { return !weight_i8.empty(); }
};

struct StemOp {
  bool is_conv = true;  // otherwise a max pool over `conv.window`
  Conv conv;
};

// One way to execute a block. Skip has no convolutions.
struct Execution {
  int bits = kSkipBits;
  float input_scale = 0.f;  // 1 / step of the branch's input; 0: the stream's levels as they are
  std::vector<Conv> branch;
};

struct Block {
  std::string name;
  bool gated = false;
  std::vector<Execution> options;  // of a gated block: the network's, in order
  std::optional<Conv> shortcut;    // none: identity
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
  bool harm = false;  // outputs are logarithms of harms, leaned by cost; else logits, leaned by rank
  float lean = 0.f;   // where none is asked for
  std::vector<Linear> embed;                     // per gated block
  std::vector<float> budget_weight, budget_bias; // (width); empty: takes no budget
  Linear lstm_input, lstm_hidden;                // (4 width, width), order i f g o; bias in input
  std::vector<Linear> out;                       // one shared, or one per gated block
  std::vector<float> block_bias;                 // (gated blocks, options); empty: none
};

// What networks of every kind have.
struct Frame {
  int height = 0, width = 0, channels = 0, classes = 0;
  std::vector<float> mean, std;
  std::vector<int> option_bits;  // of gated blocks
  Gate gate;
};

// Version 1: a CIFAR ResNet.
struct Network : Frame {
  bool integer_stream = false;
  std::vector<float> stream_steps;  // one a stage; empty for a float stream
  std::vector<StemOp> stem;
  std::vector<Block> blocks;
  Linear head;
};

}  // namespace fracskip
