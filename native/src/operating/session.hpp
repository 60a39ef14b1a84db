// A bundle, ready to classify: its engine, what it says of itself, and how it is operated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>

#include "exec/engine.hpp"
#include "io/bundle.hpp"
#include "operating/operator.hpp"
#include "operating/prices.hpp"
#include "plan/manifest.hpp"

namespace fracskip {

// Logits that are NaN or infinite: weights can be finite and too large.
struct NotFinite : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline constexpr std::uint8_t kNoDecision = 255;

// Where answers go, one row an image; null where nobody asks.
struct Answers {
  float* logits = nullptr;              // (count, classes)
  float* probabilities = nullptr;       // (count, classes)
  std::int32_t* classes = nullptr;      // (count)
  float* costs = nullptr;               // (count)
  float* latency_us = nullptr;          // (count)
  std::uint8_t* networks = nullptr;     // (count), of the member that answers
  std::uint8_t* escalations = nullptr;  // (count), members before it
  std::uint8_t* decisions = nullptr;    // (count, blocks): of the member that answers, then kNoDecision
};

class Session {
 public:
  // Throws BundleError, and std::invalid_argument for an instruction set or a number of threads that there is none of.
  Session(WholeBundle bundle, Isa isa, int threads, const Pool& pool = {});
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const Manifest& manifest() const { return manifest_; }
  const Operator& operating() const { return operator_; }
  const Engine& engine() const { return engine_; }
  std::size_t blocks() const { return blocks_; }  // the most gated ones of a network

  // Images are uint8 of the engine's image. Any number of threads may call it at once. Throws NotFinite.
  void run(const std::uint8_t* images, std::size_t count, const Operation& operation, const Answers& answers) const;

 private:
  Manifest manifest_;
  Operator operator_;
  Prices prices_;
  Engine engine_;
  std::size_t blocks_ = 0;
};

}  // namespace fracskip
