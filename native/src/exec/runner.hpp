// One image's way through the members of a chain.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "exec/engine.hpp"
#include "exec/executor.hpp"
#include "exec/gates.hpp"
#include "exec/resize.hpp"

namespace fracskip {

// The networks of an engine, and what brings images of its size to the sizes of those that take smaller ones.
struct Ensemble {
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  std::vector<std::unique_ptr<Executor>> networks;  // unchanged once the engine is there
  std::vector<std::size_t> sizes;  // of each network: the resizer, or kNone
  std::vector<Resizer> resizers;
};

// One thread's memory, for every network of an engine.
struct Arena {
  Arena(const Ensemble& ensemble, std::size_t shares);

  struct Own {
    Worker worker;
    GateState gate;
  };
  std::vector<Own> networks;
  struct Resized {
    Buffer pixels;
    bool done = false;  // for the image at hand
  };
  std::vector<Resized> resized;  // one a resizer
  Buffer scratch;
  std::vector<float> mean;  // of logits over temperatures, of the members so far
};

class Runner {
 public:
  // `turn`: who shares the steps of each image; null: nobody does. `profiles`: where what they take is added up, or null.
  Runner(const Ensemble& ensemble, Arena& arena, const Team::Turn* turn, std::vector<StepTimes>* profiles);

  // Image `index` of a request, whose images have so many bytes.
  void run(const RunRequest& request, std::size_t index, std::size_t image_bytes);

 private:
  void begin(const RunRequest& request, const void* image, std::size_t position);
  const void* resized(const void* image, std::size_t network);
  void member(const RunRequest& request, std::size_t index, const Member& asked);
  void average(float* logits, float temperature, std::size_t position);
  bool repeats(const RunRequest& request, std::size_t position) const;

  const Ensemble& ensemble_;
  Arena& arena_;
};

}  // namespace fracskip
