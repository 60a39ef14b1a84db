// What the steps of a network take.
#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

namespace fracskip {

// Added up over images: reading their pixels, deciding, and each step of the plan.
struct StepTimes {
  static constexpr std::size_t kPixels = 0, kGates = 1, kSteps = 2;

  struct Row {
    double us = 0;
    double calls = 0;
  };
  std::vector<Row> rows;

  // Adds what passes while it lives. Nothing happens where there is no profile.
  class Timed {
   public:
    Timed(StepTimes* profile, std::size_t row) : row_(profile ? &profile->rows[row] : nullptr) {
      if (row_) begin_ = Clock::now();
    }
    ~Timed() {
      if (!row_) return;
      row_->us += std::chrono::duration<double, std::micro>(Clock::now() - begin_).count();
      ++row_->calls;
    }
    Timed(const Timed&) = delete;
    Timed& operator=(const Timed&) = delete;

   private:
    using Clock = std::chrono::steady_clock;

    Row* row_;
    Clock::time_point begin_;
  };
};

}  // namespace fracskip
