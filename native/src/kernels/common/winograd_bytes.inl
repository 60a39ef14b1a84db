// Winograd's algorithm in bytes: how levels are transformed and products come to outputs, in vectors of any kind. Included by files
// that are compiled for different instruction sets: nothing of it has external linkage.
#include "kernels/common/winograd_bytes.hpp"

namespace fracskip {
namespace {

template <class T>
static inline T load(const std::uint8_t* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
static inline void store(std::uint8_t* to, T value) { __builtin_memcpy(to, &value, sizeof value); }
template <class T>
static inline T twice(T x) { return x + x; }

// -- levels: Bᵀ d B ---------------------------------------------------------------------------------------

// One or two rows of Bᵀ d from `kFirst` on, of a column of pixels; d(r) is row r.
struct TwoTop {
  static constexpr int kFirst = 0, kRows = 1;
  template <class T, class D>
  static void down(D d, T* t) { t[0] = d(0) - d(2); }
};
struct TwoMiddle {
  static constexpr int kFirst = 1, kRows = 2;
  template <class T, class D>
  static void down(D d, T* t) {
    const T d1 = d(1), d2 = d(2);
    t[0] = d1 + d2;
    t[1] = d2 - d1;
  }
};
struct TwoBottom {
  static constexpr int kFirst = 3, kRows = 1;
  template <class T, class D>
  static void down(D d, T* t) { t[0] = d(1) - d(3); }
};
struct FourTop {
  static constexpr int kFirst = 0, kRows = 1;
  template <class T, class D>
  static void down(D d, T* t) {
    const T d2 = d(2);
    t[0] = twice(twice<T>(d(0) - d2)) + d(4) - d2;
  }
};
struct FourOuter {
  static constexpr int kFirst = 1, kRows = 2;
  template <class T, class D>
  static void down(D d, T* t) {
    const T a = d(4) - twice(twice<T>(d(2))), b = d(3) - twice(twice<T>(d(1)));
    t[0] = a + b;
    t[1] = a - b;
  }
};
struct FourInner {
  static constexpr int kFirst = 3, kRows = 2;
  template <class T, class D>
  static void down(D d, T* t) {
    const T c = d(4) - d(2), e = twice<T>(d(3) - d(1));
    t[0] = c + e;
    t[1] = c - e;
  }
};
struct FourBottom {
  static constexpr int kFirst = 5, kRows = 1;
  template <class T, class D>
  static void down(D d, T* t) {
    const T d3 = d(3);
    t[0] = d(5) - d3 - twice(twice<T>(d3 - d(1)));
  }
};

// Tiles of a row, and where their transformed levels go: v[position][tile][channel].
struct Run {
  const std::uint8_t* in;
  std::ptrdiff_t in_row;
  int in_pixel, channels, tiles;
  std::uint8_t* v;
  std::ptrdiff_t position;
  const ByteHeader& header;
};

// Whether a row's second position has an offset of its own.
template <class Rows>
static inline constexpr bool apart(int i) { return Rows::kFirst + i == 1; }

// One vector of channels, from `c` on; a tile's first two columns are the last two of the tile before. Without `Offsets` the bytes
// are signed.
template <class Rows, class T, bool Offsets>
static inline void across(const Run& run, int c) {
  constexpr int kRows = Rows::kRows;
  const std::uint8_t* in = run.in + c;
  const auto column = [&](int x, T* t) {
    Rows::template down<T>([&](int r) { return load<T>(in + r * run.in_row + static_cast<std::ptrdiff_t>(x) * run.in_pixel); }, t);
  };
  std::uint8_t* v = run.v + Rows::kFirst * kByteColumns * run.position + c;
  T offset[kRows], first[kRows], second[kRows], offset_first[kRows], offset_second[kRows];
  column(0, first);
  column(1, second);
  const T second_offset = Offsets ? T(T{} + run.header.second_offset) : T{};
  for (int i = 0; i < kRows; ++i) {
    offset[i] = Offsets ? T(T{} + run.header.offset[Rows::kFirst + i]) : T{};
    offset_first[i] = first[i] + offset[i];
    offset_second[i] = second[i] + offset[i];
  }
  for (int t = 0; t < run.tiles; ++t, in += 2 * run.in_pixel, v += run.channels) {
    T third[kRows], fourth[kRows];
    column(2, third);
    column(3, fourth);
    std::uint8_t* to = v;
#pragma GCC unroll 2
    for (int i = 0; i < kRows; ++i, to += kByteColumns * run.position) {
      const T offset_third = third[i] + offset[i];
      store<T>(to, offset_first[i] - third[i]);
      store<T>(to + run.position, second[i] + (apart<Rows>(i) ? T(third[i] + second_offset) : offset_third));
      store<T>(to + 2 * run.position, offset_third - second[i]);
      store<T>(to + 3 * run.position, offset_second[i] - fourth[i]);
      offset_first[i] = offset_third;
      second[i] = fourth[i];
      offset_second[i] = fourth[i] + offset[i];
    }
  }
}

// `Levels::rows` transforms all channels.
template <class Levels, int Rows>
__attribute__((noinline)) static void transform_levels(const Run& run) {
  if constexpr (Rows == 2) {
    Levels::template rows<TwoTop>(run);
    Levels::template rows<TwoMiddle>(run);
    Levels::template rows<TwoBottom>(run);
  } else {
    Levels::template rows<FourTop>(run);
    Levels::template rows<FourOuter>(run);
    Levels::template rows<FourInner>(run);
    Levels::template rows<FourBottom>(run);
  }
}

// The levels of `count` tiles from `first` on, of an image with `across` in a row.
template <class Levels, int Rows>
static inline void transform_tiles(const ConvArgs& a, int first, int count, int across, std::uint8_t* v) {
  const int channels = round_up(a.in_channels, kBlock);
  for (int t = 0; t < count;) {
    const int row = (first + t) / across, column = (first + t) % across, rest = across - column;
    const std::uint8_t* in = static_cast<const std::uint8_t*>(a.in) + static_cast<std::ptrdiff_t>(row) * Rows * a.in_row + static_cast<std::ptrdiff_t>(column) * 2 * a.in_pixel;
    const int here = rest < count - t ? rest : count - t;
    transform_levels<Levels, Rows>({in, a.in_row, a.in_pixel, channels, here, v + t * channels, byte_levels(channels), *static_cast<const ByteHeader*>(a.weights)});
    t += here;
  }
}

// -- outputs: Aᵀ m A. A `Sum` says how a number is halved and divided by 3 -----------------------------------

// Rows of one column. F(4, 3)'s come multiplied by 24, 12, 6 and 6.
template <class Sum>
static inline void down(const typename Sum::Lanes (&z)[4], typename Sum::Lanes (&y)[2]) {
  const typename Sum::Lanes half = Sum::half(z[1], z[2]);
  y[0] = z[0] + half;
  y[1] = z[1] - half - z[3];
}
template <class Sum>
static inline void down(const typename Sum::Lanes (&z)[6], typename Sum::Lanes (&y)[4]) {
  using T = typename Sum::Lanes;
  const T p = z[1] + z[2], q = z[1] - z[2], r = z[3] + z[4], s = z[3] - z[4];
  y[0] = Sum::template third<3>(twice(z[0] + twice(z[0] - p)) + r);
  y[1] = Sum::template third<2>(s - twice(q));
  y[2] = Sum::template third<1>(r - p);
  y[3] = Sum::template third<1>(twice(s + twice(z[5]) + z[5] - q) + q);
}

}  // namespace
}  // namespace fracskip
