// Runs a network, image by image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/bundle.hpp"
#include "exec/executor.hpp"
#include "exec/image.hpp"
#include "kernels/common/isa.hpp"

namespace fracskip {

struct RunRequest {
  const void* images = nullptr;
  PixelType pixels = PixelType::u8;
  std::size_t count = 0;
  const std::uint8_t* forced = nullptr;  // (count, gated blocks) option indices, or null
  const float* budgets = nullptr;        // (count), or null
  const float* multipliers = nullptr;    // (count), or null
  // Of a cascade's second member: images whose first choice is less probable than the threshold are escalated to it.
  // Without thresholds there is one member. The second goes on from what the first gated block saw.
  const float* thresholds = nullptr;             // (count), or null
  const float* second_budgets = nullptr;         // (count), or null
  const float* second_multipliers = nullptr;     // (count), or null
  std::uint8_t* second_decisions = nullptr;      // (count, gated blocks), of images that are escalated; with thresholds
  std::uint8_t* escalated = nullptr;             // (count): whether an image was; likewise
  float* logits = nullptr;               // (count, classes), of the member that answers
  std::uint8_t* decisions = nullptr;     // (count, gated blocks), of the first member
  float* latency_us = nullptr;           // (count)
  float* gate_us = nullptr;              // (count, gated blocks): what deciding took, in all members; or null
};

// Immutable once built, so any number of threads may call `run` at once; each call takes an arena
// of its own from a pool.
class Engine {
 public:
  // Throws std::invalid_argument if the CPU lacks the instruction set. May be interrupted, as reading a bundle may.
  Engine(const Network& network, Isa isa, int threads);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  int gated_blocks() const;
  int classes() const;
  int options() const;
  int threads() const;
  Isa isa() const;
  std::vector<KernelInfo> kernels() const;

  // The first option that a gated block may take: not skip where it has no shortcut.
  int first_option(int block) const;
  const std::string& block_name(int block) const;

  // Spreads the images over the threads. Decisions must be in range; images must be finite. Between images the
  // caller's InterruptCheck is asked; what it throws comes out when all threads have stopped.
  void run(const RunRequest& request) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fracskip
