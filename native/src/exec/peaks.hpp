// What a processor reaches at most with an instruction set: what kernels are held against.
#pragma once

#include <cstddef>

#include "kernels/common/isa.hpp"

namespace fracskip {

// Of so many threads together, a second: multiply-accumulates of integers, float32 and bfloat16 values, and bytes read.
// 0: the set has none.
struct PeakRates {
  double int8 = 0, fp32 = 0, bf16 = 0, read = 0;
};

// Measures for about a quarter of a second. `bytes`: of what is read, again and again.
PeakRates measure_peaks(Isa isa, std::size_t bytes, std::size_t threads);

}  // namespace fracskip
