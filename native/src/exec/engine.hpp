// Runs networks, image by image: one, or several as the members of cascades.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/bundle.hpp"
#include "exec/executor.hpp"
#include "exec/image.hpp"
#include "exec/pool.hpp"
#include "exec/score.hpp"
#include "kernels/common/isa.hpp"

namespace fracskip {

// One network's turn in a chain. A network may stand there more than once, at other budgets; right after itself it goes on
// from what its first gated block took.
struct Member {
  std::size_t network = 0;
  const float* budgets = nullptr;      // (count), or null
  const float* multipliers = nullptr;  // (count), or null
  const float* thresholds = nullptr;   // (count): images of a lower score are escalated to the next member; null of the last
  float temperature = 1.f;             // that logits are divided by before the score
  float* scores = nullptr;             // (count), or null; NaN of images that did not come here
  std::uint8_t* decisions = nullptr;   // (count, gated blocks), of images that came here
};

struct Extent {
  int height = 0, width = 0, channels = 0;

  std::size_t values() const { return static_cast<std::size_t>(height) * width * channels; }
};

struct RunRequest {
  const void* images = nullptr;  // (count, height, width, channels), of the engine's image
  PixelType pixels = PixelType::u8;
  std::size_t count = 0;
  std::vector<Member> chain;  // at least one
  Score score = Score::probability;
  bool averaged = false;  // answers are means over the members so far, of logits over temperatures; else the last member's
  const std::uint8_t* forced = nullptr;  // (count, gated blocks) option indices of a chain of one, or null
  float* logits = nullptr;               // (count, classes), of the member that answers
  std::uint8_t* answered = nullptr;      // (count): its position in the chain
  float* latency_us = nullptr;           // (count)
  std::vector<StepTimes>* profiles = nullptr;  // one a network, added to: images are run one after the other; or null
  float* gate_us = nullptr;  // (count, gated blocks): what deciding took in all members, which are of one network; or null
};

inline constexpr int kMaxThreads = 256;

void check_threads(int threads);  // throws std::invalid_argument

// Handing a step out takes one or two microseconds, and more where threads are late.
inline constexpr std::chrono::microseconds kLeastSaving{8};

// Immutable once built, so any number of threads may call `run` at once; each call takes an arena
// of its own from a pool.
class Engine {
 public:
  // Networks as read_bundle gives them. Throws std::invalid_argument if the CPU lacks the instruction set. May be
  // interrupted, as reading a bundle may.
  // `least_saving`: what a step must become shorter by, for the threads to share it.
  // `pool`: gets as many tasks as there are threads otherwise; then the engine starts none.
  Engine(const std::vector<Network>& networks, Isa isa, int threads, std::chrono::microseconds least_saving = kLeastSaving, const Pool& pool = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  std::size_t networks() const;
  const Executor& network(std::size_t index) const;
  int classes() const;
  int threads() const;
  Isa isa() const;
  const Extent& image() const;  // of the largest network
  bool takes_floats() const;    // whether all networks have the same image, so that normalised ones fit each

  // Spreads the images over the threads, which share each of those that are left over at the end. Decisions must be in range; images must be finite. Between images the
  // caller's InterruptCheck is asked; what it throws comes out when all threads have stopped.
  void run(const RunRequest& request) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fracskip
