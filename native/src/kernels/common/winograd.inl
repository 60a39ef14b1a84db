// 3x3 convolutions of stride 1 by Winograd's algorithm F(4x4, 3x3) (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", CVPR 2016): 36 products for 16 outputs, not 144.
//
// For integers it is exact. With the fractions of the weights' transform left out (rows
// [1 0 0], [1 1 1], [1 -1 1], [1 2 4], [1 -2 4], [0 0 1]) everything is an integer: transformed
// levels reach 68 * 255 and transformed weights 49 * 127, so both fit 16 bits. What was
// left out returns in the output's transform, where each output comes out multiplied by
// f_i f_j = 9 * 2^k, f = (24, 12, 6, 6). All sums are taken modulo 2^32, a ring, so overflow on the
// way changes nothing: times the inverse of 9 the value is 2^k * acc modulo 2^32, and an arithmetic
// shift by k gives acc whenever |acc| < 2^25, which whoever chooses this kernel has proved.
//
// Included after kernels.hpp, where FRACSKIP_WINOGRAD names the set and holds what its lanes are: ShortLanes, IntLanes,
// FloatLanes, which are numbers to + and - and <<; Sums and add_sums; IntMath and FloatMath, of which each has
//   In, Element          elements of the input, of what is transformed and of weights
//   In1, kLanes          so many of the input's channels, and `load` of them
//   Out1, kParts         a part of 16 outputs, and how many there are
// and multiply_tiles<Math>, output_row<Math, residual, output, row>.
namespace fracskip {
namespace FRACSKIP_WINOGRAD {
namespace {

template <class T>
static inline T twice(T x) { return x + x; }
static inline ShortLanes fourfold(ShortLanes x) { return x << 2; }
static inline FloatLanes fourfold(FloatLanes x) { return x * 4.f; }
static inline IntLanes fourfold(IntLanes x) { return x << 2; }

// Bᵀ d: six inputs to six.
template <class T>
static inline void transform_in(T d0, T d1, T d2, T d3, T d4, T d5, T* out, int stride) {
  const T c = d4 - d2, e = twice(d3 - d1);
  const T a = d4 - fourfold(d2), b = d3 - fourfold(d1);
  out[0] = fourfold(d0 - d2) + c;
  out[stride] = a + b;
  out[2 * stride] = a - b;
  out[3 * stride] = c + e;
  out[4 * stride] = c - e;
  out[5 * stride] = d5 - d3 - twice(e);
}

// Aᵀ m: six products to four outputs; integers carry the factors (24, 12, 6, 6).
static inline void transform_out(const IntLanes* m, int stride, IntLanes* y) {
  const IntLanes p = m[stride] + m[2 * stride], q = m[stride] - m[2 * stride];
  const IntLanes r = m[3 * stride] + m[4 * stride], s = m[3 * stride] - m[4 * stride];
  y[0] = twice(fourfold(m[0]) - twice(p) - m[0]) + r;  // 6 m0 - 4 p + r
  y[1] = s - twice(q);
  y[2] = r - p;
  const IntLanes last = m[5 * stride];
  y[3] = twice(s + twice(last) + last - q) + q;  // 2 s - q + 6 m5
}
static inline void transform_out(const FloatLanes* m, int stride, FloatLanes* y) {
  const FloatLanes p = m[stride] + m[2 * stride], q = m[stride] - m[2 * stride];
  const FloatLanes r = m[3 * stride] + m[4 * stride], s = m[3 * stride] - m[4 * stride];
  y[0] = m[0] + p + r;
  y[1] = q + twice(s);
  y[2] = p + fourfold(r);
  y[3] = q + twice(fourfold(s)) + m[5 * stride];
}

// One tile's input, all channels: v[position][tile][channel].
template <class Math>
static inline void input_tile(const ConvArgs& a, const typename Math::In* in, int channels,
                              typename Math::Element* v, std::ptrdiff_t position) {
  using T = typename Math::In1;
  for (int c = 0; c < channels; c += Math::kLanes) {
    T rows[kTileIn][kTileIn];  // Bᵀ d, row by row
#pragma GCC unroll 6
    for (int j = 0; j < kTileIn; ++j) {
      const typename Math::In* d = in + static_cast<std::ptrdiff_t>(j) * a.in_pixel + c;
      transform_in<T>(Math::load(d), Math::load(d + a.in_row), Math::load(d + 2 * a.in_row),
                      Math::load(d + 3 * a.in_row), Math::load(d + 4 * a.in_row),
                      Math::load(d + 5 * a.in_row), &rows[0][j], kTileIn);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kTileIn; ++i) {
      T out[kTileIn];
      transform_in<T>(rows[i][0], rows[i][1], rows[i][2], rows[i][3], rows[i][4], rows[i][5], out, 1);
      for (int j = 0; j < kTileIn; ++j) {
        *reinterpret_cast<T*>(v + (i * kTileIn + j) * position + c) = out[j];
      }
    }
  }
}

// Between positions, vectors of m.
template <class Math>
inline constexpr std::ptrdiff_t kMPosition = kTileGroup * Math::kParts + kTilePad / static_cast<int>(sizeof(typename Math::Out1));

// All positions' products for one block of 16 output channels, four tiles at a time:
// m[position][tile][kBlock]. Kept out of line, where its pointers stay in registers.
template <class Math>
__attribute__((noinline)) static void products(const typename Math::Element* v, std::ptrdiff_t channels,
                                               std::ptrdiff_t v_position, const typename Math::Element* u,
                                               int tiles, typename Math::Out1* m) {
  constexpr int kParts = Math::kParts;
  const std::ptrdiff_t size = channels * kBlock;
  for (int position = 0; position < kTileArea; ++position, u += size, v += v_position, m += kMPosition<Math>) {
    for (int t = 0; t < tiles; t += 4) {
      typename Math::Out1 sum[4][kParts] = {};
      multiply_tiles<Math>(v + t * channels, channels, u, u + size, sum);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        for (int part = 0; part < kParts; ++part) m[(t + i) * kParts + part] = sum[i][part];
      }
    }
  }
}

template <class Math, Residual R, auto O>
static inline void output_tile(const ConvArgs& a, const typename Math::Out1* m, std::ptrdiff_t position,
                               int h, int w, int channel, Sums& sums) {
  using T = typename Math::Out1;
  T y[Math::kParts][kTile][kTile];
  for (int part = 0; part < Math::kParts; ++part) {
    T columns[kTileIn][kTile];
#pragma GCC unroll 6
    for (int j = 0; j < kTileIn; ++j) {
      transform_out(m + part + j * position, static_cast<int>(kTileIn * position), columns[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) transform_out(&columns[0][i], kTile, y[part][i]);
  }
  output_row<Math, R, O, 0>(a, h, w, channel, y, sums);
  output_row<Math, R, O, 1>(a, h, w, channel, y, sums);
  output_row<Math, R, O, 2>(a, h, w, channel, y, sums);
  output_row<Math, R, O, 3>(a, h, w, channel, y, sums);
}

// Weights: [block][position][groups of in_channels][kBlock][kGroup].
template <class Math, Residual R, auto O>
static void winograd(const ConvArgs& a) {
  using Element = typename Math::Element;
  using Out1 = typename Math::Out1;
  const int channels = round_up(a.in_channels, kBlock);
  const int across = (a.out_w + kTile - 1) / kTile, down = (a.out_h + kTile - 1) / kTile;
  const int tiles = across * down;
  const std::ptrdiff_t v_position = static_cast<std::ptrdiff_t>(kTileGroup) * channels + (channels > 16 ? kTilePad / static_cast<int>(sizeof(Element)) : 0);
  Element* v = static_cast<Element*>(a.scratch);
  Out1* m = reinterpret_cast<Out1*>(v + kTileArea * v_position);
  for (int begin = 0; begin < tiles; begin += kTileGroup) {
    const int count = tiles - begin < kTileGroup ? tiles - begin : kTileGroup;
    for (int t = 0; t < count; ++t) {
      const int h = (begin + t) / across * kTile, w = (begin + t) % across * kTile;
      const typename Math::In* in = static_cast<const typename Math::In*>(a.in) + h * a.in_row +
                                    static_cast<std::ptrdiff_t>(w) * a.in_pixel;
      input_tile<Math>(a, in, channels, v + t * channels, v_position);
    }
    const Element* u = static_cast<const Element*>(a.weights);
    for (int block = 0; block < a.out_blocks; ++block) {
      products<Math>(v, channels, v_position, u, count, m);
      u += kTileArea * channels * kBlock;
      Sums sums;
      sums.clear();
      for (int t = 0; t < count; ++t) {
        const int h = (begin + t) / across * kTile, w = (begin + t) % across * kTile;
        output_tile<Math, R, O>(a, m + t * Math::kParts, kMPosition<Math>, h, w, block * kBlock, sums);
      }
      add_sums(a, block * kBlock, sums);
    }
  }
}

}  // namespace
}  // namespace FRACSKIP_WINOGRAD
}  // namespace fracskip
