#include "interrupt.hpp"

namespace fracskip {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kEvery{50};

thread_local InterruptCheck* current = nullptr;

}  // namespace

InterruptCheck::InterruptCheck() : due_(Clock::now() + kEvery), outer_(current) { current = this; }

InterruptCheck::~InterruptCheck() { current = outer_; }

void check_interrupt() {
  InterruptCheck* const own = current;
  if (!own || Clock::now() < own->due_) return;
  own->check();
  own->due_ = Clock::now() + kEvery;
}

}  // namespace fracskip
