#include "exec/resize.hpp"

#include <algorithm>
#include <cstdlib>

namespace fracskip {
namespace {

// Of an input at a distance, both in halves of an output's share of an input's; their sum is what counts. Below 2^47.
std::int64_t weight_at(std::int64_t distance, std::int64_t spacing) {
  const std::int64_t d = distance, D = spacing;
  if (d < D) return 3 * d * d * d - 5 * d * d * D + 2 * D * D * D;
  if (d < 2 * D) return -d * d * d + 5 * d * d * D - 8 * d * D * D + 4 * D * D * D;
  return 0;
}

std::int64_t floor_divided(std::int64_t value, std::int64_t by) {
  const std::int64_t quotient = value / by;
  return value % by < 0 ? quotient - 1 : quotient;
}

// Weights of all inputs within reach, from `first` on, that add up to 2^kResizeBits.
std::vector<std::int64_t> weights_of(std::int64_t from, std::int64_t to, std::int64_t x, std::int64_t& first) {
  const std::int64_t spacing = 2 * from, centre = (2 * x + 1) * from;
  // |(2 i + 1) to - centre| < 2 spacing
  first = std::max<std::int64_t>(0, floor_divided(centre - 2 * spacing - to, 2 * to) + 1);
  std::vector<std::int64_t> weights;
  std::int64_t sum = 0;
  for (std::int64_t i = first; i < from; ++i) {
    const std::int64_t distance = std::abs((2 * i + 1) * to - centre);
    if (distance >= 2 * spacing) break;
    weights.push_back(weight_at(distance, spacing));
    sum += weights.back();
  }
  std::int64_t rest = std::int64_t{1} << kResizeBits;
  const std::int64_t whole = rest;
  for (std::int64_t& weight : weights) {
    weight = floor_divided(weight * whole, sum);
    rest -= weight;
  }
  *std::max_element(weights.begin(), weights.end()) += rest;
  while (weights.size() > 1 && weights.back() == 0) weights.pop_back();
  while (weights.size() > 1 && weights.front() == 0) {
    weights.erase(weights.begin());
    ++first;
  }
  return weights;
}

}  // namespace

ResizeAxis::ResizeAxis(int from, int to) {
  std::vector<std::vector<std::int64_t>> all;
  for (int x = 0; x < to; ++x) {
    std::int64_t first = 0;
    all.push_back(weights_of(from, to, x, first));
    first_.push_back(static_cast<std::int32_t>(first));
    taps_ = std::max(taps_, static_cast<int>(all.back().size()));
  }
  room_ = round_up(taps_, kResizeRoom);
  weights_.assign(static_cast<std::size_t>(to) * room_, 0);
  for (std::size_t x = 0; x < all.size(); ++x) {
    // As many taps for all: where these would end beyond the image they begin before.
    const int before = std::max(0, first_[x] + taps_ - from);
    first_[x] -= before;
    std::copy(all[x].begin(), all[x].end(), weights_.begin() + static_cast<std::ptrdiff_t>(x) * room_ + before);
  }
}

ResizeTable ResizeAxis::table() const { return {static_cast<int>(first_.size()), taps_, room_, first_.data(), weights_.data()}; }

Resizer::Resizer(int from_height, int from_width, int height, int width, int channels, const ResizeKernels& kernels)
    : kernels_(kernels), height_(height), from_width_(from_width), width_(width), channels_(channels), rows_(from_height, height),
      columns_(from_width, width) {}

std::size_t Resizer::bytes() const { return static_cast<std::size_t>(height_) * width_ * channels_; }

std::size_t Resizer::scratch_bytes() const {
  const auto ahead = static_cast<std::size_t>(kResizeRoom) * channels_ + kResizeAhead;  // columns read on beyond their taps
  return static_cast<std::size_t>(height_) * from_width_ * channels_ + ahead;
}

void Resizer::run(const std::uint8_t* image, std::uint8_t* out, std::uint8_t* scratch) const {
  kernels_.rows(image, scratch, from_width_ * channels_, rows_.table());
  kernels_.columns(scratch, out, height_, from_width_, channels_, columns_.table());
}

}  // namespace fracskip
