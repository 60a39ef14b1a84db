// A network of version 1 prepared for execution: which kernel writes which activation, decided once.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "plan/convolution.hpp"
#include "kernels/common/kernels.hpp"
#include "plan/memory.hpp"
#include "plan/network.hpp"

namespace fracskip {

inline constexpr int kNone = -1;

// A convolution between activations, given by their numbers in `Plan::layouts`.
struct ConvStep {
  const Convolution* conv = nullptr;
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
  int in = kNone, out = kNone;  // the stream before and after
  float pooled_factor = 1.f;    // channel sum to mean, for its gate
  std::vector<PlannedOption> options;
};

struct Plan {
  Plan(const Network& network, const KernelSet& kernels);

  const KernelSet& kernels;
  std::vector<Layout> layouts;
  std::vector<std::unique_ptr<Convolution>> convolutions;
  Buffer weights;  // of all convolutions, in the order of execution
  int image = kNone;
  std::vector<StemStep> stem;
  std::vector<PlannedBlock> blocks;
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
  void plan_block(const Network& network, const Block& block, int stage);
  PlannedOption plan_option(const Network& network, const Block& block, const Execution& execution, int stage);
  void finish();

  std::vector<std::string> roles_;
  std::map<std::tuple<std::string, int, int, int, Element>, int> known_;  // activations
};

}  // namespace fracskip
