// Winograd's algorithm in bytes.
//
// A tile's levels become Bᵀ d B, its weights G g Gᵀ; their products are added up over the channels, and Aᵀ m A are the outputs.
// F(4, 3) has the integers of winograd_avx2.cpp, F(2, 3) these: G's rows (1 0 0), (1 1 1), (1 -1 1), (0 0 1) without the halves
// that belong to the middle ones, which return in the outputs:
//
//     Bᵀ d = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)        Aᵀ m = (m0 + (m1 + m2) / 2, (m1 - m2) / 2 - m3)
//
// Levels are 0 to M. A row of Bᵀ takes them to [-low M, high M]; what the columns then add up to [-(low + high) M, (low + high) M],
// or [-2 low M, 2 high M] in the second column. An offset of as much as is below 0 makes bytes of them, at most 4 M for F(2x2) and 20 M
// for F(4x2): up to 6 bits and 3. Its product with the sum of a position's weights is what sums begin below. Where bytes are signed,
// as NEON multiplies them, there is no offset: 4 M and 16 M are the most, up to 5 bits and 3.
//
// Sums in 16 bits need not stay within them: they are right modulo 2^16. Where outputs are halved, numbers must be what they are:
// m1 + m2 is even, so with both above 0, by what the sums begin with, `vpavgw` gives the exact half. That takes no more than
// 2^16 different values, which the sums of a filter's positive and of its negative weights tell. The division by 3 of F(4, 3)'s
// outputs is a product modulo 2^16 and a shift by up to 3 bits, which takes outputs below 2^12.
#include "plan/winograd_bytes.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "plan/convolution.hpp"

namespace fracskip {
namespace {

constexpr int kTaps = 3;
constexpr int kMostRows = 6;

struct Row {
  int weights[kTaps];  // of G
  int low, high;       // see above
};
constexpr Row kTwo[] = {{{1, 0, 0}, 1, 1}, {{1, 1, 1}, 0, 2}, {{1, -1, 1}, 1, 1}, {{0, 0, 1}, 1, 1}};
constexpr Row kFour[] = {{{1, 0, 0}, 5, 5}, {{1, 1, 1}, 8, 2}, {{1, -1, 1}, 5, 5}, {{1, 2, 4}, 3, 3}, {{1, -2, 4}, 3, 3}, {{0, 0, 1}, 5, 5}};
constexpr const Row* rows_of(int rows) { return rows == 2 ? kTwo : kFour; }

// Below 0, and from there to the largest, in the second column and in others.
constexpr int offset_of(const Row& row, bool second = false) { return second ? 2 * row.low : row.low + row.high; }
constexpr int span_of(const Row& row) { return 2 * (row.low + row.high); }
// The largest as they are, without an offset.
constexpr int reach_of(const Row& row) { return 2 * std::max(row.low, row.high); }

}  // namespace

// What a sum of products may be, each of a weight and a number from -low to high.
struct ByteWeights::Range {
  std::int64_t least = 0, most = 0;

  void add(int weight, std::int64_t low, std::int64_t high) {
    least -= weight > 0 ? weight * low : -weight * high;
    most += weight > 0 ? weight * high : -weight * low;
  }
  // Whether, begun at `from()`, it is a 16-bit number without sign. That is even: of two such sums the half is exact.
  bool fits() const { return from() + most <= std::numeric_limits<std::uint16_t>::max(); }
  std::int64_t from() const { return (1 - least) / 2 * 2; }
};

// One output's weights.
struct ByteWeights::Filter {
  int channels, rows;                     // of the transform
  std::vector<std::int16_t> vertical;     // G g, [channel][row][kTaps]
  std::vector<std::int16_t> transformed;  // G g Gᵀ, [channel][position]

  Filter(int channels, int rows)
      : channels(channels), rows(rows), vertical(static_cast<std::size_t>(channels) * rows * kTaps), transformed(static_cast<std::size_t>(channels) * rows * kByteColumns) {}

  int at(int channel, int position) const {  // 0 where there is no such channel
    return channel < channels ? transformed[static_cast<std::size_t>(channel) * rows * kByteColumns + position] : 0;
  }

  // What a column of Aᵀ m A may be in a row that is still to be halved.
  Range column(int i, const Row& row, int top) const {
    Range range;
    for (int c = 0; c < channels; ++c) {
      for (int x = 0; x < kTaps; ++x) range.add(vertical[(static_cast<std::size_t>(c) * rows + i) * kTaps + x], row.low * top, row.high * top);
    }
    return range;
  }

  // Whether they are bytes. `weight`: [kTaps][kTaps][channel].
  bool transform(const std::int8_t* weight, const Row* row) {
    std::int16_t *down = vertical.data(), *both = transformed.data();
    for (int c = 0; c < channels; ++c) {
      for (int i = 0; i < rows; ++i, down += kTaps) {
        for (int x = 0; x < kTaps; ++x) {
          const auto tap = [&](int y) { return row[i].weights[y] * weight[(y * kTaps + x) * channels + c]; };
          down[x] = static_cast<std::int16_t>(tap(0) + tap(1) + tap(2));
        }
        for (const Row& column : kTwo) {
          const int sum = column.weights[0] * down[0] + column.weights[1] * down[1] + column.weights[2] * down[2];
          if (std::abs(sum) > std::numeric_limits<std::int8_t>::max()) return false;
          *both++ = static_cast<std::int16_t>(sum);
        }
      }
    }
    return true;
  }

  // How many groups, at most so many, wherever they begin, a lane of 16 bits may add up: it takes two of a group's channels, so
  // far apart. Transformed levels are -low to high.
  int exact_run(int position, int run, int apart, int low, int high) const {
    for (int lane = 0; lane < 2; ++lane) {
      Range sum;
      const auto add = [&](int group, int sign) {
        const int first = group * kByteChannels + (apart == 1 ? 2 * lane : lane);
        for (int c : {first, first + apart}) sum.add(at(c, position), sign * low, sign * high);
      };
      for (int begin = 0, end = 0; end < round_up(channels, kByteChannels) / kByteChannels; ++end) {
        add(end, 1);
        for (; sum.most > std::numeric_limits<std::int16_t>::max() || sum.least < std::numeric_limits<std::int16_t>::min(); ++begin) {
          run = std::min(run, end - begin);
          add(begin, -1);
        }
      }
    }
    return run;
  }
};

ByteWeights::ByteWeights(const Conv& conv, int rows, bool pairs) : rows_(rows), groups_(round_up(conv.in, kBlock) / kByteChannels), pairs_(pairs) {
  const Row* const row = rows_of(rows);
  const int tall = rows + kTaps - 1, blocks = round_up(conv.out, kBlock) / kBlock;
  for (int i = 0; i < tall; ++i) {
    if (pairs ? reach_of(row[i]) * conv.most_level > std::numeric_limits<std::int8_t>::max() : span_of(row[i]) * conv.most_level > std::numeric_limits<std::uint8_t>::max()) return;
  }
  packed_ = Buffer(kByteHeader + static_cast<std::size_t>(blocks) * byte_block(rows, groups_ * kByteChannels));
  for (std::vector<std::int32_t>& begin : begin_) begin.resize(static_cast<std::size_t>(blocks) * byte_positions(rows) * kBlock);
  ByteHeader& header = *packed_.as<ByteHeader>();
  for (int i = 0; i < tall && !pairs; ++i) header.offset[i] = static_cast<std::uint8_t>(offset_of(row[i]) * conv.most_level);
  if (!pairs) header.second_offset = static_cast<std::uint8_t>(offset_of(row[1], true) * conv.most_level);
  Filter filter(conv.in, tall);
  int run = groups_;
  for (int out = 0; out < conv.out && run > 0; ++out) {
    const std::int8_t* const weight = &conv.weight_i8[static_cast<std::size_t>(out) * kTaps * kTaps * conv.in];
    if (!filter.transform(weight, row)) return;
    Range output;
    for (int i = 0; i < kTaps * kTaps * conv.in; ++i) output.add(weight[i], 0, conv.most_level);
    short_sums_ = short_sums_ && std::max(output.most, -output.least) < (rows == 4 ? 1 << 12 : 1 << 15);
    std::int64_t begin[kMostRows] = {};
    if (rows == 2) {  // halves down the columns as well as across
      begin[1] = halved(filter.column(1, row[1], conv.most_level));
      begin[2] = halved(filter.column(2, row[2], conv.most_level));
      begin[0] = -(begin[1] + begin[2]) / 2;
      begin[3] = (begin[1] - begin[2]) / 2;
    }
    for (int i = 0; i < tall; ++i) add_row(filter, out, i, conv.most_level, begin[i], run);
  }
  header.run = run_ = run;
}

// Packs a row of an output's transformed weights, and holds it against the limits of sums. `begin`: of what the row's two
// columns come to.
void ByteWeights::add_row(const Filter& filter, int out, int i, int top, std::int64_t begin, int& run) {
  const Row& row = rows_of(rows_)[i];
  const int positions = byte_positions(rows_), block = out / kBlock, place = out % kBlock;
  std::int8_t* const weights = packed_.as<std::int8_t>() + kByteHeader + block * byte_block(rows_, groups_ * kByteChannels) + positions * kBlock * sizeof(std::int32_t);
  std::int64_t sums[kByteColumns] = {}, from[kByteColumns] = {};
  for (int j = 0; j < kByteColumns; ++j) {
    const int position = i * kByteColumns + j, below = offset_of(row, j == 1) * top, span = span_of(row) * top;
    Range range;
    for (int c = 0; c < groups_ * kByteChannels; ++c) {
      const int weight = filter.at(c, position);
      weights[((static_cast<std::size_t>(position) * groups_ + c / kByteChannels) * kBlock + place) * kByteChannels + c % kByteChannels] = static_cast<std::int8_t>(weight);
      range.add(weight, below, span - below);
      sums[j] += weight;
    }
    run = pairs_ ? filter.exact_run(position, run, 2, below, span - below) : filter.exact_run(position, run, 1, 0, span);
    if (j == 1 || j == 2) from[j] = halved(range);
  }
  // Outputs are (m0 + half, m1 - half - m3).
  from[0] = begin - (from[1] + from[2]) / 2;
  from[3] = (from[1] - from[2]) / 2 - begin;
  for (int j = 0; j < kByteColumns; ++j) {
    const std::size_t at = (static_cast<std::size_t>(block) * positions + i * kByteColumns + j) * kBlock + place;
    const std::int64_t below = pairs_ ? 0 : offset_of(row, j == 1) * top * sums[j];
    begin_[0][at] = static_cast<std::uint16_t>(from[j] - below);
    begin_[1][at] = static_cast<std::int32_t>(-below);
  }
}

// What a sum that is halved begins with.
std::int64_t ByteWeights::halved(const Range& sum) {
  short_sums_ = short_sums_ && sum.fits();
  return sum.from();
}

Buffer ByteWeights::take(bool wide) {
  const std::size_t size = static_cast<std::size_t>(byte_positions(rows_)) * kBlock;
  const std::vector<std::int32_t>& begin = begin_[wide];
  for (std::size_t block = 0; block * size < begin.size(); ++block) {
    char* const to = packed_.as<char>() + kByteHeader + block * byte_block(rows_, groups_ * kByteChannels);
    std::copy_n(&begin[block * size], size, reinterpret_cast<std::int32_t*>(to));
    if (wide && !pairs_) continue;
    char* group = to + size * sizeof(std::int32_t);
    for (std::size_t g = 0; g < static_cast<std::size_t>(byte_positions(rows_)) * groups_; ++g) {
      if (pairs_) {
        char apart[kBlock * kByteChannels];
        for (int o = 0; o < kBlock; ++o) {
          for (int c = 0; c < kByteChannels; ++c) apart[(c / 2 * kBlock + o) * 2 + c % 2] = group[o * kByteChannels + c];
        }
        group = std::copy_n(apart, sizeof apart, group);
        continue;
      }
      for (int o = 0; o < kBlock / 2; ++o, group += kByteChannels) std::swap_ranges(group + 2, group + 4, group + kBlock / 2 * kByteChannels + 2);
      group += kBlock / 2 * kByteChannels;
    }
  }
  return std::move(packed_);
}

}  // namespace fracskip
