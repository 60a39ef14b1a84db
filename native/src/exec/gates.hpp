// A network's gates made ready, and what one thread needs to ask them.
#pragma once

#include <vector>

#include "kernels/common/kernels.hpp"
#include "plan/memory.hpp"
#include "plan/network.hpp"

namespace fracskip {

// Weights packed for the kernels; see kernels/gate.inl.
struct Gates {
  // `count` gated blocks. In a static network nobody decides for them: their one option is the decision.
  Gates(const Network& network, const KernelSet& kernels, std::size_t count);

  struct Own {
    Buffer embed, embed_bias, out, block_bias;
    int channels = 0;
    bool embed_bf16 = false;  // as gates are trained: the same values in half of the bytes
  };

  const KernelSet& kernels;
  std::size_t count;
  GateKind kind;
  int width = 0, padded_width = 0, options = 0, padded_options = 0;
  bool sensitivity = false;
  float multiplier = 0.f;           // where none is asked for
  std::vector<float> cost_weights;  // (options)
  std::vector<Own> own;             // of each gated block; none in a static network
  Buffer lstm, budget;  // budget: weight, then bias; empty if the gate takes none
};

// What a gate carries from block to block of one image.
class GateState {
 public:
  explicit GateState(const Gates& gates);

  // Before the first block; without a budget, null.
  void start(const float* budget);
  // The option of a block with such channel means. `first`: the first option that it may take.
  int decide(std::size_t block, const float* pooled, float multiplier, int first);

 private:
  float* part(int number) { return memory_.as<float>() + number * gates_.padded_width; }

  const Gates& gates_;
  Buffer memory_;  // hidden, cell, encoded budget, five of work, scores
};

}  // namespace fracskip
