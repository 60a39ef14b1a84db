// A network made ready for execution: what an engine runs image by image.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "exec/gates.hpp"
#include "exec/image.hpp"
#include "exec/step_times.hpp"
#include "exec/team.hpp"
#include "kernels/common/kernels.hpp"
#include "plan/plan.hpp"

namespace fracskip {

// What executes one option of one part, for `doctor` and for tests that int8 really ran.
struct KernelInfo {
  std::string part, option;
  std::vector<std::string> kernels;  // one a convolution of the branch
};

// Immutable once made, so that threads share it.
struct Executor {
  Executor(const Network& network, const KernelSet& set);

  std::vector<KernelInfo> kernel_infos() const;

  // A row of a profile, in the order of `StepTimes::rows`.
  struct ProfileRow {
    std::string part, option;
    StepInfo info;
  };
  std::vector<ProfileRow> profile_rows() const;

  // Times all steps, and finds those that so many threads should share: it saves more than that. Gives whether there is one.
  bool choose_shared(std::size_t threads, std::chrono::microseconds least_saving);

  const KernelSet& set;
  Plan plan;
  Gates gates;
  ImageReader reader;
  int classes;
  std::vector<std::string> names;  // of parts
  std::vector<std::size_t> gated;  // the gated parts, and where parts end
  std::vector<int> first_options;  // that each of them may take: not skip where it has no shortcut
  bool takes_budget;

  int gated_blocks() const { return static_cast<int>(gates.count); }
  int options() const { return gates.options; }
  const std::string& block_name(std::size_t block) const { return names[gated[block]]; }

 private:
  template <class Function>
  void each_step(Function function) const;  // of (part, option, step), as a profile counts them
};

// One thread's way through a network, with its activations and scratch. Blocks are the gated parts, counted.
class Worker {
 public:
  // Steps may be cut into up to so many shares.
  Worker(const Executor& executor, std::size_t shares);

  // Who does the steps that are shared, until the next call: null for this thread.
  void share_with(const Team::Turn* turn) { turn_ = turn; }
  // Where what steps take is added up, until the next call: null for nowhere.
  void record(StepTimes* profile) { profile_ = profile; }
  StepTimes* profile() const { return profile_; }

  void begin(const void* image, PixelType pixels);       // up to the first block
  const float* pooled(std::size_t block);                // channel means of what a block takes
  void execute(std::size_t block, std::size_t option);   // and what follows, up to the next one
  void classify(float* logits);

  // Puts aside what the first block takes, and brings it back for a second member.
  void keep();
  void bring_back();

 private:
  Buffer& begun() { return memory_.buffers[static_cast<std::size_t>(executor_.plan.parts[executor_.gated[0]].in.buffer)]; }
  void execute(const PlannedPart& part, std::size_t option);
  void execute_fixed(std::size_t begin, std::size_t end);
  void run(const Course& course);

  const Executor& executor_;
  const Team::Turn* turn_ = nullptr;
  StepTimes* profile_ = nullptr;
  Memory memory_;
  Buffer pooled_;
  Buffer kept_, kept_sums_;
  bool kept_summed_ = false;
};

}  // namespace fracskip
