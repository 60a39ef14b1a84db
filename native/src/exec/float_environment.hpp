// Rounding to the nearest, gradual underflow and no traps while kernels run, whatever the host program has set.
#pragma once

#include <cfenv>

namespace fracskip {

// Of the thread that makes it, until it is destroyed. The C library knows each processor's register (MXCSR, FPCR), and its
// default environment is the one that kernels promise their results in.
class FloatEnvironment {
 public:
  FloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&saved_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  std::fenv_t saved_;
};

}  // namespace fracskip
