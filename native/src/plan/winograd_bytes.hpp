// Weights for Winograd's algorithm in bytes, and what is proved of them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/winograd_bytes.hpp"
#include "plan/memory.hpp"

namespace fracskip {

struct Conv;

// Of a 3x3 convolution of integers, for tiles of `rows` (2 or 4) by 2 outputs.
class ByteWeights {
 public:
  // `pairs`: for kernels of signed levels (byte_pairs of a set).
  ByteWeights(const Conv& conv, int rows, bool pairs = false);

  // Whether levels and weights fit 8 bits once they are transformed, and sums of two products 16.
  bool operands() const { return run_ > 0; }
  // Whether all sums may be taken in 16 bits, whatever the levels.
  bool short_sums() const { return operands() && short_sums_; }
  // Groups of channels whose products may be added up in 16 bits where sums are of 32.
  int run() const { return run_; }

  // For sums of 16 or 32 bits; once.
  Buffer take(bool wide);

 private:
  struct Filter;
  struct Range;
  void add_row(const Filter& filter, int out, int row, int top, std::int64_t begin, int& run);
  std::int64_t halved(const Range& sum);

  int rows_, groups_;
  bool pairs_;
  int run_ = 0;
  bool short_sums_ = true;
  Buffer packed_;
  std::vector<std::int32_t> begin_[2];  // what sums of 16 and of 32 bits begin with, [block][position][kBlock]
};

}  // namespace fracskip
