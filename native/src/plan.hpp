// A network prepared for execution: which kernel writes which activation, decided once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "convolution.hpp"
#include "kernels/kernels.hpp"
#include "memory.hpp"
#include "network.hpp"

namespace fracskip {

inline constexpr int kNone = -1;

// A convolution between activations, given by their numbers in `Plan::layouts`.
struct ConvStep {
  const Convolution* conv = nullptr;
  std::size_t number = 0;  // in `Plan::convolutions`
  ConvArgs args{};  // without pointers to activations
  int in = kNone, out = kNone, residual = kNone;
  bool sums = false;  // whether it writes the stream, whose channel sums the next gate reads
};

// A pass that brings the stream into the form that an option computes in.
struct MapStep {
  MapFunction function = nullptr;
  float step = 1.f, scale = 1.f, top = 255.f;
  int in = kNone, out = kNone;
};

struct PoolStep {
  Window window;
  int in = kNone, out = kNone;
};

struct StemStep {
  bool is_conv = true;
  ConvStep conv;
  PoolStep pool;
};

// One option of one block: convert, project the shortcut, run the branch. Empty: do nothing.
struct PlannedOption {
  MapStep map;  // without a function: none
  std::vector<ConvStep> convs;
};

struct PlannedBlock {
  int gate = kNone;
  int in = kNone, out = kNone;  // the stream before and after
  float pooled_factor = 1.f;    // channel sum to mean, for its gate
  std::vector<PlannedOption> options;
};

struct PlannedGate {
  Buffer embed, out, block_bias;
  int channels = 0;
};

struct Plan {
  Plan(const Network& network, const KernelSet& kernels);

  const KernelSet& kernels;
  std::vector<Layout> layouts;
  std::vector<std::unique_ptr<Convolution>> convolutions;
  Buffer weights;  // of all convolutions, in the order of execution
  int image = kNone;
  std::vector<float> pixel_values;  // (channels, 256): the normalised value of a byte
  std::vector<StemStep> stem;
  std::vector<PlannedBlock> blocks;
  std::size_t first_gated = 0;  // of the blocks; where a second look goes on
  std::vector<PlannedGate> gates;
  GateKind gate_kind = GateKind::none;
  int gate_width = 0, padded_width = 0, options = 0, padded_options = 0;
  bool harm = false;
  float lean = 0.f;                 // where none is asked for
  std::vector<float> lean_weights;  // (options)
  Buffer lstm, budget;  // budget: weight, then bias; empty if the gate takes none
  int head_in = kNone;
  float head_factor = 1.f;
  Linear head;
  bool integer_stream = false;
  std::size_t scratch_bytes = 0;
  int most_channels = 0;

 private:
  int activation(const std::string& role, int h, int w, int c, Element element);
  ConvStep step(const Conv& conv, int in, int out, bool half = false);
  void plan_stem(const Network& network);
  void plan_block(const Network& network, const Block& block, int stage, int gate);
  PlannedOption plan_option(const Network& network, const Block& block, const Execution& execution, int stage);
  void plan_gates(const Network& network);
  void finish();

  std::vector<std::string> roles_;
};

}  // namespace fracskip
