// What a processor with AMX reaches at most; see `Peaks`. Tiles are configured when a thread enters.
#include "kernels/x86/peaks.hpp"

#include <immintrin.h>

#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace {

// What is multiplied is 0: time does not depend on it.
void clear() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

// Four sums hide the latency of one.
std::int64_t int8(std::int64_t rounds) {
  clear();
  for (std::int64_t round = 0; round < rounds; ++round) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  return rounds * 4 * (16 * 16 * 64);
}

std::int64_t bf16(std::int64_t rounds) {
  clear();
  for (std::int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return rounds * 4 * (16 * 16 * 32);
}

}  // namespace

constexpr Peaks kAmxPeaks = {int8, avx512::peak_fp32, bf16, avx512::peak_read};

}  // namespace fracskip
