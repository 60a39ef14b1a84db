// A network prepared for execution: what every option of every part does, step by step, and in which memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "plan/convolution.hpp"
#include "kernels/common/kernels.hpp"
#include "plan/convolution.hpp"
#include "plan/network.hpp"
#include "plan/plan_memory.hpp"

namespace fracskip {

// One worker's memory.
struct Memory {
  std::vector<Buffer> buffers;
  std::vector<Buffer> scratch;  // one a share of a step
  Buffer sums;  // of the channels of what a part gives, where its last step adds them up: floats, or of levels integers
  bool summed = false;  // whether they are those of what the next part takes

  char* at(const Place& place) {
    const auto first = place.layout.origin() * static_cast<std::ptrdiff_t>(place.layout.bytes_each());
    return buffers[static_cast<std::size_t>(place.buffer)].as<char>() + first;
  }
  char* row(const Place& place, int h) {
    return at(place) + h * place.layout.row * static_cast<std::ptrdiff_t>(place.layout.bytes_each());
  }
};

// The channels' means of the levels that a part takes: of their sums, if those are there. `args` lack pointers.
void mean_of_levels(Memory& memory, LevelMeanFunction function, LevelMeanArgs args, const Place& in, float* out);

// One of so many shares of a step's work, which may be done at the same time.
struct Share {
  std::uint32_t index = 0, count = 1;

  // Its part of so many, in whole units; may be none. Returns the first, and sets `many` to how many they are.
  int take(int& many, int unit = 1) const {
    const auto up_to = [&](std::int64_t part) { return static_cast<int>(std::min<std::int64_t>(many, (many + unit - 1) / unit * part / count * unit)); };
    const int first = up_to(index), end = up_to(std::int64_t{index} + 1);
    many = end - first;
    return first;
  }
};

// What a step does to an image, in words and numbers: for profiles.
struct StepInfo {
  std::string kernel;
  std::int64_t macs = 0;   // as the network defines them, whatever the algorithm
  std::int64_t bytes = 0;  // of values read and written, and of weights
};

class Step {
 public:
  virtual ~Step() = default;

  // All of it, or a share, if it can be shared. Whatever the shares, each value is computed in the same way.
  virtual void run(Memory& memory, Share share) const = 0;
  virtual bool can_be_shared() const { return true; }

  StepInfo info;
  std::size_t index = 0;   // among its network's steps
  bool is_shared = false;  // whether it takes so long that sharing it pays
};

// What one option of a part does.
struct Course {
  std::vector<std::unique_ptr<Step>> steps;
  std::string option;                // its label
  std::vector<std::string> kernels;  // of its convolutions
  bool sums = false;                 // whether the last step leaves channel sums
};

struct PlannedPart {
  Place in, out;
  LevelMeanArgs mean{};  // of the levels that it takes, where it takes some
  std::vector<Course> options;
};

struct Plan {
  Plan(const Network& network, const KernelSet& kernels);

  Place image;    // its pixels have no padded channels
  Course spread;  // brings it into the form of a value, where one is needed
  std::vector<PlannedPart> parts;
  std::vector<std::size_t> buffer_bytes;
  std::size_t scratch_bytes = 0;
  int most_channels = 0;  // of what a gated part takes
  std::vector<std::unique_ptr<Convolution>> convolutions;
  Buffer weights;  // of all of them, in order
};

}  // namespace fracskip
