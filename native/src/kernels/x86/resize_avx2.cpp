// Resizing with AVX2: taps in pairs by vpmaddwd, 32-bit sums as in the plain loops.
#include <immintrin.h>

#include <cstring>

#include "kernels/common/kernels.hpp"

namespace fracskip {
namespace resize_avx2 {
namespace {

inline __m128i load(const std::uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

// Sums to values; those out of a byte's range are clamped when they are packed.
inline __m128i scaled(__m128i sums) { return _mm_srai_epi32(_mm_add_epi32(sums, _mm_set1_epi32(1 << (kResizeBits - 1))), kResizeBits); }
inline __m256i scaled(__m256i sums) {
  return _mm256_srai_epi32(_mm256_add_epi32(sums, _mm256_set1_epi32(1 << (kResizeBits - 1))), kResizeBits);
}

inline std::int32_t two_at(const std::int16_t* weights) {
  std::int32_t both;
  std::memcpy(&both, weights, sizeof both);
  return both;
}

// 16 bytes of an output row.
inline void row_piece(const std::uint8_t* in, std::uint8_t* out, int row_bytes, int taps, const std::int16_t* weights) {
  __m256i low = _mm256_setzero_si256(), high = low;
  for (int t = 0; t < taps; t += 2) {
    const std::uint8_t* from = in + static_cast<std::ptrdiff_t>(t) * row_bytes;
    const __m256i a = _mm256_cvtepu8_epi16(load(from));
    const __m256i b = _mm256_cvtepu8_epi16(load(t + 1 < taps ? from + row_bytes : from));  // a last one's weight is 0
    const __m256i pair = _mm256_set1_epi32(two_at(weights + t));
    low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair));
  }
  const __m256i words = _mm256_packs_epi32(scaled(low), scaled(high));
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
}

void rows(const std::uint8_t* in, std::uint8_t* out, int row_bytes, const ResizeTable& table) {
  constexpr int kPiece = 16;
  if (row_bytes < kPiece) return kScalarResize.rows(in, out, row_bytes, table);
  for (int y = 0; y < table.outputs; ++y, out += row_bytes) {
    const std::uint8_t* from = in + static_cast<std::ptrdiff_t>(table.first[y]) * row_bytes;
    const std::int16_t* weights = table.weights + static_cast<std::ptrdiff_t>(y) * table.room;
    int b = 0;
    for (; b + kPiece <= row_bytes; b += kPiece) row_piece(from + b, out + b, row_bytes, table.taps, weights);
    if (b < row_bytes) row_piece(from + row_bytes - kPiece, out + row_bytes - kPiece, row_bytes, table.taps, weights);
  }
}

// One output pixel of three channels, in each of `Rows` rows: four taps at a time, two in each half.
template <int Rows>
inline void three(const std::uint8_t* in, std::ptrdiff_t row_bytes, int taps, const std::int16_t* weights, __m128i* sums) {
  constexpr char kNone = -128;
  const __m256i pairs = _mm256_setr_epi8(0, kNone, 3, kNone, 1, kNone, 4, kNone, 2, kNone, 5, kNone, kNone, kNone, kNone, kNone,  //
                                         6, kNone, 9, kNone, 7, kNone, 10, kNone, 8, kNone, 11, kNone, kNone, kNone, kNone, kNone);
  const __m256i each = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  __m256i sum[Rows];
  for (int r = 0; r < Rows; ++r) sum[r] = _mm256_setzero_si256();
  for (int t = 0; t < taps; t += 4) {
    long long four;
    std::memcpy(&four, weights + t, sizeof four);
    const __m256i weight = _mm256_shuffle_epi8(_mm256_set1_epi64x(four), each);
    for (int r = 0; r < Rows; ++r) {
      const __m256i pixels = _mm256_broadcastsi128_si256(load(in + r * row_bytes + 3 * t));
      sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, pairs), weight));
    }
  }
  for (int r = 0; r < Rows; ++r) sums[r] = scaled(_mm_add_epi32(_mm256_castsi256_si128(sum[r]), _mm256_extracti128_si256(sum[r], 1)));
}

template <int Rows>
void three_channels(const std::uint8_t* in, std::uint8_t* out, int width, const ResizeTable& table) {
  constexpr int kPixels = 4;
  const std::ptrdiff_t in_row = 3 * static_cast<std::ptrdiff_t>(width), out_row = 3 * static_cast<std::ptrdiff_t>(table.outputs);
  const __m128i close = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
  for (int x = 0; x < table.outputs; x += kPixels, out += 3 * kPixels) {
    __m128i sums[kPixels][Rows];
    for (int p = 0; p < kPixels; ++p) {
      const int at = x + p < table.outputs ? x + p : table.outputs - 1;
      three<Rows>(in + 3 * table.first[at], in_row, table.taps, table.weights + static_cast<std::ptrdiff_t>(at) * table.room, sums[p]);
    }
    for (int r = 0; r < Rows; ++r) {
      const __m128i words[] = {_mm_packs_epi32(sums[0][r], sums[1][r]), _mm_packs_epi32(sums[2][r], sums[3][r])};
      const __m128i bytes = _mm_shuffle_epi8(_mm_packus_epi16(words[0], words[1]), close);
      const int count = table.outputs - x;
      if (count >= kPixels) {
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + r * out_row), bytes);
        const int last = _mm_extract_epi32(bytes, 2);
        std::memcpy(out + r * out_row + 8, &last, sizeof last);
      } else {
        std::uint8_t all[16];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(all), bytes);
        std::memcpy(out + r * out_row, all, 3 * static_cast<std::size_t>(count));
      }
    }
  }
}

void one_channel(const std::uint8_t* in, std::uint8_t* out, const ResizeTable& table) {
  for (int x = 0; x < table.outputs; ++x) {
    const std::uint8_t* from = in + table.first[x];
    const std::int16_t* weights = table.weights + static_cast<std::ptrdiff_t>(x) * table.room;
    __m256i sum = _mm256_setzero_si256();
    for (int t = 0; t < table.taps; t += 16) {
      const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + t));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(load(from + t)), weight));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = scaled(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    const __m128i words = _mm_packs_epi32(four, four);
    out[x] = static_cast<std::uint8_t>(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
  }
}

void columns(const std::uint8_t* in, std::uint8_t* out, int rows, int width, int channels, const ResizeTable& table) {
  if (channels != 1 && channels != 3) return kScalarResize.columns(in, out, rows, width, channels, table);
  const std::ptrdiff_t in_row = static_cast<std::ptrdiff_t>(width) * channels, out_row = static_cast<std::ptrdiff_t>(table.outputs) * channels;
  int y = 0;
  for (; channels == 3 && y + 2 <= rows; y += 2) three_channels<2>(in + y * in_row, out + y * out_row, width, table);
  for (; y < rows; ++y) {
    if (channels == 3) three_channels<1>(in + y * in_row, out + y * out_row, width, table);
    else one_channel(in + y * in_row, out + y * out_row, table);
  }
}

}  // namespace
}  // namespace resize_avx2

constexpr ResizeKernels kAvx2Resize = {resize_avx2::rows, resize_avx2::columns};

}  // namespace fracskip
