// A network made ready for execution, of whatever kind: what an engine runs image by image.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "io/bundle.hpp"
#include "exec/gates.hpp"
#include "exec/image.hpp"
#include "kernels/common/isa.hpp"

namespace fracskip {

// What executes one option of one block, for `doctor` and for tests that int8 really ran.
struct KernelInfo {
  std::string block, option;
  std::vector<std::string> kernels;  // one a convolution of the branch
};

// One thread's way through a network, with its activations and scratch. Blocks are counted among the gated ones.
class Worker {
 public:
  virtual ~Worker() = default;

  virtual void begin(const void* image, PixelType pixels) = 0;  // up to the first gated block
  virtual const float* pooled(std::size_t block) = 0;           // channel means of what a block takes
  virtual void execute(std::size_t block, std::size_t option) = 0;  // and what follows, up to the next one
  virtual void classify(float* logits) = 0;

  // Puts aside what the first gated block takes, and brings it back for a second look.
  virtual void keep() = 0;
  virtual void bring_back() = 0;
};

// Immutable once made, so that threads share it.
class Executor {
 public:
  Executor(const Frame& frame, const KernelSet& set, std::size_t gated)
      : gates(frame, set, gated), classes(frame.classes), option_bits(frame.option_bits) {}
  virtual ~Executor() = default;

  virtual std::unique_ptr<Worker> make_worker() const = 0;
  virtual std::vector<KernelInfo> kernels() const = 0;
  // Of each gated block that must be executed, its name; '' for others, which may be left out at the end.
  virtual std::vector<std::string> unskippable() const { return {}; }

  Gates gates;
  int classes;
  std::vector<int> option_bits;
};

std::unique_ptr<Executor> make_executor(const Network& network, const KernelSet& kernels);
std::unique_ptr<Executor> make_executor(const GraphNetwork& network, const KernelSet& kernels);

}  // namespace fracskip
