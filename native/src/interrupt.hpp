// Whether a caller still wants what it waits for: long work asks between two images, tensors or convolutions.
#pragma once

#include <chrono>

namespace fracskip {

// Asked for the thread that made it, until it is destroyed. One made meanwhile takes its place for as long as it lives.
class InterruptCheck {
 public:
  InterruptCheck(const InterruptCheck&) = delete;
  InterruptCheck& operator=(const InterruptCheck&) = delete;

 protected:
  InterruptCheck();
  ~InterruptCheck();

 private:
  virtual void check() = 0;  // throws to end the work

  std::chrono::steady_clock::time_point due_;
  InterruptCheck* outer_;

  friend void check_interrupt();
};

// Asks this thread's check if it has one and was not asked just before. Cheap.
void check_interrupt();

}  // namespace fracskip
