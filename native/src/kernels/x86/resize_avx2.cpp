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

constexpr int kPiece = 16;

// So many pieces of 16 bytes of an output row.
template <int Pieces>
inline void row_piece(const std::uint8_t* in, std::uint8_t* out, int row_bytes, int taps, const std::int16_t* weights) {
  __m256i low[Pieces], high[Pieces];
  for (int p = 0; p < Pieces; ++p) low[p] = high[p] = _mm256_setzero_si256();
  for (int t = 0; t < taps; t += 2, in += 2 * static_cast<std::ptrdiff_t>(row_bytes)) {
    const std::uint8_t* next = t + 1 < taps ? in + row_bytes : in;  // a last one's weight is 0
    const __m256i pair = _mm256_set1_epi32(two_at(weights + t));
    for (int p = 0; p < Pieces; ++p) {
      const __m256i a = _mm256_cvtepu8_epi16(load(in + kPiece * p)), b = _mm256_cvtepu8_epi16(load(next + kPiece * p));
      low[p] = _mm256_add_epi32(low[p], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair));
      high[p] = _mm256_add_epi32(high[p], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair));
    }
  }
  for (int p = 0; p < Pieces; ++p) {
    const __m256i words = _mm256_packs_epi32(scaled(low[p]), scaled(high[p]));
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + kPiece * p), bytes);
  }
}

void rows(const std::uint8_t* in, std::uint8_t* out, int row_bytes, const ResizeTable& table) {
  if (row_bytes < kPiece) return kScalarResize.rows(in, out, row_bytes, table);
  for (int y = 0; y < table.outputs; ++y, out += row_bytes) {
    const std::uint8_t* from = in + static_cast<std::ptrdiff_t>(table.first[y]) * row_bytes;
    const std::int16_t* weights = table.weights + static_cast<std::ptrdiff_t>(y) * table.room;
    int b = 0;
    for (; b + 2 * kPiece <= row_bytes; b += 2 * kPiece) row_piece<2>(from + b, out + b, row_bytes, table.taps, weights);
    for (; b < row_bytes; b += kPiece) {
      const int at = b + kPiece <= row_bytes ? b : row_bytes - kPiece;  // the last one again, as far as it goes
      row_piece<1>(from + at, out + at, row_bytes, table.taps, weights);
    }
  }
}

constexpr int kPixels = 4;

// Pixels of three channels, of two rows: a row to each half, two taps at a time. Copies of what the table says, which bytes
// that are written might be part of, stay in registers.
template <int Taps>
void three_channels(const std::uint8_t* in, std::uint8_t* out, std::ptrdiff_t in_next, std::ptrdiff_t out_next, const ResizeTable table) {
  const int taps = Taps ? Taps : table.taps;
  constexpr char kNone = -128;
  const __m256i early = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, kNone, 3, kNone, 1, kNone, 4, kNone, 2, kNone, 5, kNone, kNone, kNone, kNone, kNone));
  const __m256i late = _mm256_broadcastsi128_si256(_mm_setr_epi8(6, kNone, 9, kNone, 7, kNone, 10, kNone, 8, kNone, 11, kNone, kNone, kNone, kNone, kNone));
  const __m256i close = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15));
  for (int x = 0; x < table.outputs; x += kPixels, out += 3 * kPixels) {
    const int count = table.outputs - x < kPixels ? table.outputs - x : kPixels;
    __m256i sums[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      const int at = x + (p < count ? p : 0);
      const std::uint8_t* from = in + 3 * static_cast<std::ptrdiff_t>(table.first[at]);
      const std::int16_t* weights = table.weights + static_cast<std::ptrdiff_t>(at) * table.room;
      __m256i sum = _mm256_setzero_si256();
      for (int t = 0; t < taps; t += 4, from += 12) {
        const __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(load(from)), load(from + in_next), 1);
        const __m256i first = _mm256_set1_epi32(two_at(weights + t)), second = _mm256_set1_epi32(two_at(weights + t + 2));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, early), first));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, late), second));
      }
      sums[p] = scaled(sum);
    }
    const __m256i words = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
    const __m256i bytes = _mm256_shuffle_epi8(words, close);
    std::uint8_t both[32];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(both), bytes);
    if (count == kPixels) {
      std::memcpy(out, both, 3 * kPixels);
      std::memcpy(out + out_next, both + 16, 3 * kPixels);
    } else {
      std::memcpy(out, both, 3 * static_cast<std::size_t>(count));
      std::memcpy(out + out_next, both + 16, 3 * static_cast<std::size_t>(count));
    }
  }
}

template <int Taps>
void one_channel(const std::uint8_t* in, std::uint8_t* out, const ResizeTable table) {
  const int taps = Taps ? Taps : table.taps;
  for (int x = 0; x < table.outputs; x += kPixels, out += kPixels) {
    const int count = table.outputs - x < kPixels ? table.outputs - x : kPixels;
    __m128i sums[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      const int at = x + (p < count ? p : 0);
      const std::int16_t* weights = table.weights + static_cast<std::ptrdiff_t>(at) * table.room;
      sums[p] = _mm_setzero_si128();
      for (int t = 0; t < taps; t += 8) {
        const __m128i pixels = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(in + table.first[at] + t)));
        const __m128i weight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + t));
        sums[p] = _mm_add_epi32(sums[p], _mm_madd_epi16(pixels, weight));
      }
    }
    const __m128i all = scaled(_mm_hadd_epi32(_mm_hadd_epi32(sums[0], sums[1]), _mm_hadd_epi32(sums[2], sums[3])));
    const __m128i words = _mm_packs_epi32(all, all);
    const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    if (count == kPixels) std::memcpy(out, &bytes, kPixels);
    else std::memcpy(out, &bytes, static_cast<std::size_t>(count));
  }
}

// Taps: of all outputs, rounded up where zeros follow; 0 where there are more.
template <int Taps>
void columns(const std::uint8_t* in, std::uint8_t* out, int rows, std::ptrdiff_t in_row, std::ptrdiff_t out_row, int channels, const ResizeTable& table) {
  for (int y = 0; y < rows; y += channels == 3 ? 2 : 1) {
    const std::uint8_t* from = in + y * in_row;
    std::uint8_t* to = out + y * out_row;
    if (channels == 1) one_channel<Taps>(from, to, table);
    else if (y + 1 < rows) three_channels<Taps>(from, to, in_row, out_row, table);
    else three_channels<Taps>(from, to, 0, 0, table);  // a last row twice
  }
}

void columns(const std::uint8_t* in, std::uint8_t* out, int rows, int width, int channels, const ResizeTable& table) {
  if (channels != 1 && channels != 3) return kScalarResize.columns(in, out, rows, width, channels, table);
  const std::ptrdiff_t in_row = static_cast<std::ptrdiff_t>(width) * channels, out_row = static_cast<std::ptrdiff_t>(table.outputs) * channels;
  if (table.taps <= 4) columns<4>(in, out, rows, in_row, out_row, channels, table);
  else if (table.taps <= 8) columns<8>(in, out, rows, in_row, out_row, channels, table);
  else columns<0>(in, out, rows, in_row, out_row, channels, table);
}

}  // namespace
}  // namespace resize_avx2

constexpr ResizeKernels kAvx2Resize = {resize_avx2::rows, resize_avx2::columns};

}  // namespace fracskip
