// AMX: convolutions of any shape by products of tiles. tdpbusd multiplies 16 pixels of 64 unsigned levels
// with 64 by 16 signed weights and adds to 16 x 16 sums of 32 bits, exactly. tdpbf16ps does it for 32
// bfloat16 values, and adds in float32.
//
// Tiles are loaded straight from the activation, 16 rows of 64 bytes. A row is what one output pixel
// reads: its row of taps is a run of kernel_w * in_pixel bytes, taken in chunks of 64. Where a run goes
// past its end, weights are zero.
//
// With 16 channels of levels such rows would start every 16 bytes, and a tile of rows that straddle cache lines
// takes three times as long to load as to multiply. There a row is a cache line: four neighbouring
// pixels (a quad). Four output pixels read two of them, and each output pixel of the four has weights
// of its own, shifted by its place: half as many products more, but no torn line.
//
// Convolutions in float32 are AVX-512's, and so AVX2's.
#include <immintrin.h>

#include "kernels/x86/epilogue_avx512.hpp"
#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace amx {
namespace {

using avx512::kTogether;
using avx512::Present;
using avx512::Sums;

constexpr int kLine = 64;
constexpr int kSide = 16;  // rows of a tile, and 32-bit columns
constexpr int kTileSum = kTileBytes / 4;  // values

// What is summed up, and from what: levels or bfloat16 values.
struct Levels {
  using Sum = __m512i;
  static constexpr Element kElement = Element::u8;
  static Sum load(const float* from) { return _mm512_load_si512(from); }
};
struct Halves {
  using Sum = __m512;
  static constexpr Element kElement = Element::bf16;
  static Sum load(const float* from) { return _mm512_load_ps(from); }
};

// Tiles are named by literals: GCC pastes them into the instruction.
#define FRACSKIP_MULTIPLY(sums, pixels, weights)        \
  do {                                                  \
    if constexpr (Math::kElement == Element::u8) {      \
      _tile_dpbusd(sums, pixels, weights);              \
    } else {                                            \
      _tile_dpbf16ps(sums, pixels, weights);            \
    }                                                   \
  } while (false)

struct alignas(64) Config {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t bytes[16];
  std::uint8_t rows[16];
};

// All eight tiles 16 rows of 64 bytes, for every convolution alike. In memory of its own: GCC 12 believes
// that only its first bytes are read, and would drop stores to the others.
constexpr Config kConfig = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

void enter() { _tile_loadconfig(&kConfig); }

void leave() { _tile_release(); }

// How tiles go through the output: a tile's row is one output pixel, or a quad of them, and `pitch` tile
// rows lie between the starts of two rows of the image. Where the input's rows follow one another
// without a gap, tiles run on through its border (`flat`); otherwise they begin anew with every row.
// What falls on no pixel is not finished.
struct Geometry {
  bool quads, flat;
  std::ptrdiff_t in_row, in_pixel;  // in bytes
  int each;   // pixels of a tile's row
  int need;   // tile rows that an output row fills
  int pitch;  // from one output row to the next
  int tiles;

  Geometry(const ConvArgs& a, Element element)
      : quads(tile_quads(element, a.in_channels, a.stride_h, a.stride_w)),
        in_row(a.in_row * static_cast<std::ptrdiff_t>(size_of(element))),
        in_pixel(a.in_pixel * static_cast<std::ptrdiff_t>(size_of(element))) {
    each = quads ? 4 : 1;
    need = (a.out_w + each - 1) / each;
    pitch = round_up(need, kSide);
    tiles = pitch / kSide * a.out_h;
    const int gapless = static_cast<int>(a.in_row / (each * a.in_pixel));
    const int fewer = ((a.out_h - 1) * gapless + need + kSide - 1) / kSide;
    flat = a.in_row % (each * a.in_pixel) == 0 && a.stride_w == 1 && a.stride_h == 1 && fewer < tiles;
    if (flat) {
      pitch = gapless;
      tiles = fewer;
    }
  }
};

// Where a tile begins.
struct Place {
  int h, row;  // output row, and tile row within it

  Place(const Geometry& g, int tile) : h(tile * kSide / g.pitch), row(tile * kSide - h * g.pitch) {}
  const std::uint8_t* in(const ConvArgs& a, const Geometry& g) const {
    return static_cast<const std::uint8_t*>(a.in) + static_cast<std::ptrdiff_t>(h) * a.stride_h * g.in_row +
           static_cast<std::ptrdiff_t>(row) * g.each * a.stride_w * g.in_pixel;
  }
};

// Finishes the 16 rows of sums that begin at a place. Of quads, tile p holds pixels p.
template <class Math, Residual R, Result O>
void finish_tile(const ConvArgs& a, const Geometry& g, Place place, int block, const float* from, Sums& totals) {
  const std::ptrdiff_t apart = g.quads ? kTileSum : kBlock, next = g.quads ? kBlock : kTogether * kBlock;
  Sums sums = totals;
  for (int left = kSide; left > 0 && place.h < a.out_h; ++place.h, place.row = 0) {
    const int here = g.pitch - place.row < left ? g.pitch - place.row : left;
    const int w = place.row * g.each, pixels = a.out_w - w < here * g.each ? a.out_w - w : here * g.each;
    const avx512::Target target(a, block, place.h, w);
    const float* sum = from;
    int p = 0;
    for (; p + kTogether <= pixels; p += kTogether, sum += next) {
      avx512::finish<kTogether, R, O>(target, p,
                                      {Math::load(sum), Math::load(sum + apart), Math::load(sum + 2 * apart), Math::load(sum + 3 * apart)},
                                      sums);
    }
    for (; p < pixels; ++p, sum += apart) {
      const typename Math::Sum one = Math::load(sum);
      avx512::finish<1, R, O>(target, p, {one, one, one, one}, sums);
    }
    from += here * kBlock;
    left -= here;
  }
  totals = sums;
}

// Tiles 0 to 3 hold sums, the others what is multiplied.
void clear() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

void store(float* to) {
  _tile_stored(0, to, kLine);
  _tile_stored(1, to + kTileSum, kLine);
  _tile_stored(2, to + 2 * kTileSum, kLine);
  _tile_stored(3, to + 3 * kTileSum, kLine);
}

// Sums `M` tiles of pixels from `first` on up for `N` blocks of channels: tile m N + n.
// Weights: [block][kernel_h][chunks of 64 bytes][16][kBlock][4 levels' or 2 values'].
template <class Math, int M, int N>
void multiply(const ConvArgs& a, const Geometry& g, int first, int block) {
  static_assert(M * N <= kTileSums, "");
  const int chunks = tile_chunks(Math::kElement, a.kernel_w, a.in_pixel);
  const std::ptrdiff_t block_size = static_cast<std::ptrdiff_t>(a.kernel_h) * chunks * kTileBytes;
  const std::int8_t* weight = static_cast<const std::int8_t*>(a.weights) + block * block_size;
  const std::ptrdiff_t step = a.stride_w * g.in_pixel;
  const std::uint8_t* in[kTileSums] = {};
  for (int m = 0; m < M; ++m) in[m] = Place(g, first + m).in(a, g);
  clear();
  for (int y = 0; y < a.kernel_h; ++y) {
    for (int chunk = 0; chunk < chunks; ++chunk, weight += kTileBytes) {
      _tile_loadd(6, weight, kLine);
      _tile_loadd(4, in[0], step);
      FRACSKIP_MULTIPLY(0, 4, 6);
      if (N == 2) {
        _tile_loadd(7, weight + block_size, kLine);
        FRACSKIP_MULTIPLY(1, 4, 7);
        if (M == 2) {
          _tile_loadd(5, in[1], step);
          FRACSKIP_MULTIPLY(2, 5, 6);
          FRACSKIP_MULTIPLY(3, 5, 7);
        }
      } else {
        if (M > 1) {
          _tile_loadd(5, in[1], step);
          FRACSKIP_MULTIPLY(1, 5, 6);
        }
        if (M > 2) {
          _tile_loadd(4, in[2], step);
          FRACSKIP_MULTIPLY(2, 4, 6);
        }
        if (M > 3) {
          _tile_loadd(5, in[3], step);
          FRACSKIP_MULTIPLY(3, 5, 6);
        }
      }
      for (int m = 0; m < M; ++m) in[m] += kLine;
    }
    for (int m = 0; m < M; ++m) in[m] += g.in_row - chunks * kLine;
  }
}

template <class Math>
void multiply(const ConvArgs& a, const Geometry& g, int first, int m, int block, int n) {
  if (n == 2) return m == 2 ? multiply<Math, 2, 2>(a, g, first, block) : multiply<Math, 1, 2>(a, g, first, block);
  if (m == 4) return multiply<Math, 4, 1>(a, g, first, block);
  if (m == 3) return multiply<Math, 3, 1>(a, g, first, block);
  return m == 2 ? multiply<Math, 2, 1>(a, g, first, block) : multiply<Math, 1, 1>(a, g, first, block);
}

// Likewise for 16 quads: tile p sums up their pixels p. After some products others are finished.
// Weights: [block][kernel_h][fours][pixels that reach them][16][kBlock][4].
template <class Finisher>
__attribute__((always_inline)) inline void multiply_quads(const ConvArgs& a, const Geometry& g, int first, const std::int8_t* weight,
                                                          Finisher& finisher, int pace) {
  const int fours = tile_fours(a.kernel_w);
  const std::uint8_t* in = Place(g, first).in(a, g);
  clear();
  for (int y = 0; y < a.kernel_h; ++y, in += g.in_row) {
    for (int four = 0; four < fours; ++four) {
      _tile_loadd(4, in + four * kLine, kLine);
      if (tile_reaches(a.kernel_w, 0, four)) {
        _tile_loadd(5, weight, kLine);
        _tile_dpbusd(0, 4, 5);
        weight += kTileBytes;
      }
      if (tile_reaches(a.kernel_w, 1, four)) {
        _tile_loadd(6, weight, kLine);
        _tile_dpbusd(1, 4, 6);
        weight += kTileBytes;
      }
      if (tile_reaches(a.kernel_w, 2, four)) {
        _tile_loadd(5, weight, kLine);
        _tile_dpbusd(2, 4, 5);
        weight += kTileBytes;
      }
      _tile_loadd(6, weight, kLine);
      _tile_dpbusd(3, 4, 6);
      weight += kTileBytes;
      finisher.quads(pace);
    }
  }
}

std::ptrdiff_t quads_bytes(const ConvArgs& a) {  // of one block of channels
  std::ptrdiff_t tiles = 0;
  for (int four = 0; four < tile_fours(a.kernel_w); ++four) {
    for (int pixel = 0; pixel < 4; ++pixel) tiles += tile_reaches(a.kernel_w, pixel, four);
  }
  return tiles * a.kernel_h * kTileBytes;
}

// Finishes quads one by one where input, output and residual lie in memory alike, so that a quad is the
// same cache line's distance away in all of them. The border's quads are masked: branches that are
// guessed wrong would cost more, since what is guessed includes the products to come.
template <Residual R, Result O>
class QuadFinisher {
 public:
  static bool fits(const ConvArgs& a, const Geometry& g) {
    return g.quads && g.flat && is_levels(O) && a.input == 1.f && a.out_pixel == kBlock && a.out_row == a.in_row &&
           (R == Residual::none || (R == Residual::u8 && a.residual_pixel == kBlock && a.residual_row == a.in_row));
  }

  // `memory` holds a mask for each of `pitch` + 16 quads.
  QuadFinisher(const ConvArgs& a, const Geometry& g, int block, void* memory)
      : target_(a, block, 0, 0), present_(static_cast<Present*>(memory)), left_((a.out_h - 1) * g.pitch + g.need), pitch_(g.pitch) {
    target_.residual_pixel = target_.out_pixel = kBlock;  // constants from here on
    for (int quad = 0, row = 0; quad < g.pitch + kSide; ++quad) {
      const int pixels = a.out_w - kTogether * row;
      present_[quad] = Present(pixels < 0 ? 0 : pixels < kTogether ? pixels : kTogether);
      if (++row == g.pitch) row = 0;
    }
  }

  // Takes on 16 quads; those before must be finished.
  void take(const float* sums) {
    sums_ = sums;
    ready_ = left_ < kSide ? left_ : kSide;
    left_ -= ready_;
    while (row_ >= pitch_) row_ -= pitch_;
  }

  __attribute__((always_inline)) inline void quads(int count) {
    for (; count > 0 && ready_ > 0; --count, --ready_) {
      avx512::finish_dense<R, O>(target_,
                              {Levels::load(sums_), Levels::load(sums_ + kTileSum), Levels::load(sums_ + 2 * kTileSum),
                               Levels::load(sums_ + 3 * kTileSum)},
                              present_[row_++], totals_);
      target_.out += kLine;
      target_.residual += kLine;
      sums_ += kBlock;
    }
  }

  void add_sums(const ConvArgs& a, int block) const { avx512::add_sums<O>(a, block, totals_); }

 private:
  avx512::Target target_;
  Sums totals_;
  const float* sums_ = nullptr;
  Present* present_;
  int left_, pitch_;  // quads of the image; from row to row
  int ready_ = 0, row_ = 0;
};

// Tiles whose sums are held at a time: of so many from the first on, for so many blocks of channels.
struct Group {
  int first = 0, m = 0, block = 0, n = 0;
};

struct NoFinisher {
  void quads(int) {}
};

// While the tiles of one group are multiplied, the vector units finish the group before.
template <class Math, Residual R, Result O>
struct Tiles {
  static void run(const ConvArgs& a) {
    const Geometry g(a, Math::kElement);
    if constexpr (Math::kElement == Element::u8 && is_levels(O)) {
      if (QuadFinisher<R, O>::fits(a, g)) return alike_quads(a, g);
    }
    const std::ptrdiff_t block_size = quads_bytes(a);
    const int blocks = g.quads || a.out_blocks == 1 ? 1 : 2, most = g.quads ? 1 : kTileSums / blocks, band = band_of(a, g, most);
    float *now = static_cast<float*>(a.scratch), *before = now + kTileSums * kTileSum;
    Sums sums[2];
    Group last;
    const auto finish = [&] {
      for (int tile = 0; tile < last.m * last.n; ++tile) {
        finish_tile<Math, R, O>(a, g, Place(g, last.first + tile / last.n), last.block + tile % last.n, before + tile * kTileSum, sums[tile % last.n]);
      }
    };
    const auto add_up = [&] {
      for (int b = 0; b < last.n; ++b) {
        avx512::add_sums<O>(a, last.block + b, sums[b]);
        sums[b] = Sums();
      }
    };
    for (int begin = 0; begin < g.tiles; begin += band) {
      const int end = g.tiles - begin < band ? g.tiles : begin + band;
      for (int block = 0; block < a.out_blocks; block += blocks) {
        const int n = a.out_blocks - block < blocks ? 1 : blocks;
        for (int first = begin; first < end; first += most) {
          const int m = end - first < most ? end - first : most;
          if (g.quads) {
            NoFinisher none;
            multiply_quads(a, g, first, static_cast<const std::int8_t*>(a.weights) + block * block_size, none, 0);
          } else {
            multiply<Math>(a, g, first, m, block, n);
          }
          finish();
          if (first == begin) add_up();
          store(now);
          swap(now, before);
          last = {first, m, block, n};
        }
      }
    }
    finish();
    add_up();
  }

  // Tiles whose pixels are multiplied with all weights before the next ones are: as many as a near cache holds, where they are
  // not all in it and weights are less to fetch again.
  static int band_of(const ConvArgs& a, const Geometry& g, int most) {
    constexpr std::ptrdiff_t kNear = 16 << 10;
    const std::ptrdiff_t tile = static_cast<std::ptrdiff_t>(a.stride_h) * kSide * a.stride_w * g.in_pixel;
    const std::ptrdiff_t weights = static_cast<std::ptrdiff_t>(a.kernel_h) * tile_chunks(Math::kElement, a.kernel_w, a.in_pixel) * kTileBytes;
    const bool fixed_order = a.sums && !is_levels(O);
    if (g.quads || fixed_order || a.out_blocks <= 2 || g.tiles * tile <= 2 * kNear || weights >= kNear) return g.tiles;
    const int near = static_cast<int>(kNear / tile) / most * most;
    return near > most ? near : most;
  }

  // A processor looks ahead by a few quads only: they are finished between the products.
  static void alike_quads(const ConvArgs& a, const Geometry& g) {
    const std::ptrdiff_t block_size = quads_bytes(a);
    const int pace = (kSide - 1) / (a.kernel_h * tile_fours(a.kernel_w)) + 1;
    float *now = static_cast<float*>(a.scratch), *before = now + kTileSums * kTileSum;
    void* const masks = now + 2 * kTileSums * kTileSum;
    for (int block = 0; block < a.out_blocks; ++block) {
      const std::int8_t* weights = static_cast<const std::int8_t*>(a.weights) + block * block_size;
      QuadFinisher<R, O> finisher(a, g, block, masks);
      for (int tile = 0; tile < g.tiles; ++tile) {
        multiply_quads(a, g, tile, weights, finisher, pace);
        store(now);
        finisher.quads(kSide);
        finisher.take(now);
        swap(now, before);
      }
      finisher.quads(kSide);
      finisher.add_sums(a, block);
    }
  }

  static void swap(float*& one, float*& other) {
    float* const kept = one;
    one = other;
    other = kept;
  }
};

template <Residual R, Result O>
using LevelTiles = Tiles<Levels, R, O>;
template <Residual R, Result O>
using HalfTiles = Tiles<Halves, R, O>;

void tiles_int(const ConvArgs& a) { avx512::dispatch<LevelTiles, true>(a); }
void tiles_bf16(const ConvArgs& a) {
  if (a.out_type == Element::bf16) return HalfTiles<Residual::none, Result::bf16>::run(a);  // within a branch
  avx512::dispatch<HalfTiles>(a);
}

// Passes to bfloat16, 16 channels at a time.
template <class In, class Load>
__attribute__((always_inline)) inline void to_bf16(const StageArgs& a, Load load) {
  for (int h = 0; h < a.h; ++h) {
    const In* in = static_cast<const In*>(a.in) + h * a.in_row;
    char* out = static_cast<char*>(a.out) + h * a.out_row * 2;
    for (int w = 0; w < a.w; ++w, in += a.in_pixel, out += a.out_pixel * 2) {
      for (int c = 0; c < a.channels; c += kBlock) avx512::store_values<Result::bf16>(out + 2 * c, load(in + c));
    }
  }
}

void u8_to_bf16(const StageArgs& a) {
  to_bf16<std::uint8_t>(a, [](const std::uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  });
}
void f32_to_bf16(const StageArgs& a) {
  to_bf16<float>(a, [](const float* from) { return _mm512_loadu_ps(from); });
}

// The other kernels, through AVX-512's set: which file is compiled how stays its own affair.
void conv_int(const ConvArgs& a) { kAvx512Kernels.conv_int(a); }
void conv_float(const ConvArgs& a) { kAvx512Kernels.conv_float(a); }
void winograd_float(const ConvArgs& a) { kAvx512Kernels.winograd_float(a); }
int gate(const GateArgs& a) { return kAvx512Kernels.gate(a); }

}  // namespace
}  // namespace amx

constexpr KernelSet kAmxKernels = [] {
  KernelSet set;
  set.name = "amx";
  set.conv_int = amx::conv_int;
  set.conv_float = amx::conv_float;
  set.winograd_float = amx::winograd_float;
  set.tiles_int = amx::tiles_int;
  set.tiles_bf16 = amx::tiles_bf16;
  set.int_group = 4;
  set.u8_to_bf16 = amx::u8_to_bf16;
  set.f32_to_bf16 = amx::f32_to_bf16;
  set.gate = amx::gate;
  set.values = &kAvx512Values;
  set.resize = &kAvx2Resize;
  set.peaks = &kAmxPeaks;
  set.enter = amx::enter;
  set.leave = amx::leave;
  return set;
}();

}  // namespace fracskip
