// Winograd's algorithm in bytes for AVX2 and for AVX-512: levels of 32 channels at a time, or of 16 of two pixels.
#pragma once

#include <immintrin.h>

#include "kernels/common/winograd_bytes.inl"

namespace fracskip {
namespace {

using Bytes = std::uint8_t __attribute__((vector_size(32), may_alias));
using HalfBytes = std::uint8_t __attribute__((vector_size(16), may_alias));

template <int Halves>
static inline Bytes halves(Bytes x, Bytes y) {
  return reinterpret_cast<Bytes>(_mm256_permute2x128_si256(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(y), Halves));
}

// 16 channels, pixels side by side: two tiles at a time, two pixels a vector.
template <class Rows>
static inline void across_pairs(const Run& run) {
  constexpr int kRows = Rows::kRows, kLow = 0x20, kHigh = 0x31;
  const std::uint8_t* in = run.in;
  const auto columns = [&](int x, Bytes* t) {
    Rows::template down<Bytes>([&](int r) { return load<Bytes>(in + r * run.in_row + x * kBlock); }, t);
  };
  std::uint8_t* v = run.v + Rows::kFirst * kByteColumns * run.position;
  Bytes offset[kRows], first[kRows], offset_first[kRows];
  columns(0, first);
  const Bytes second_offset = Bytes{} + run.header.second_offset;
  for (int i = 0; i < kRows; ++i) {
    offset[i] = Bytes{} + run.header.offset[Rows::kFirst + i];
    offset_first[i] = first[i] + offset[i];
  }
  for (int t = 0; t < run.tiles; t += 2, in += 4 * kBlock, v += 2 * kBlock) {
    Bytes second[kRows], third[kRows];
    columns(2, second);
    columns(4, third);
    std::uint8_t* to = v;
#pragma GCC unroll 2
    for (int i = 0; i < kRows; ++i, to += kByteColumns * run.position) {
      const Bytes offset_second = second[i] + offset[i], offset_third = third[i] + offset[i];
      const Bytes one = offset_first[i] - second[i], other = offset_second - third[i];
      const Bytes odd = halves<kHigh>(first[i], second[i]), even = halves<kLow>(offset_second, offset_third);
      store<Bytes>(to, halves<kLow>(one, other));
      store<Bytes>(to + run.position, odd + (apart<Rows>(i) ? Bytes(halves<kLow>(second[i], third[i]) + second_offset) : even));
      store<Bytes>(to + 2 * run.position, even - odd);
      store<Bytes>(to + 3 * run.position, halves<kHigh>(one, other));
      first[i] = third[i];
      offset_first[i] = offset_third;
    }
  }
}

struct Levels {
  template <class Rows>
  static inline void rows(const Run& run) {
    constexpr int kWhole = sizeof(Bytes);
    if (run.channels < kWhole) {
      if (run.in_pixel == kBlock) across_pairs<Rows>(run);
      else across<Rows, HalfBytes, true>(run, 0);
      return;
    }
    for (int c = 0; c < run.channels; c += kWhole) across<Rows, Bytes, true>(run, c + kWhole <= run.channels ? c : run.channels - kWhole);
  }
};

}  // namespace
}  // namespace fracskip
