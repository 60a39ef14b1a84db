#include "plan/plan_memory.hpp"

#include <algorithm>

namespace fracskip {
namespace {

constexpr int kNothing = -1;

// The smallest that is large enough; or else the largest, which then grows.
bool fits_better(std::size_t bytes, std::size_t other, std::size_t wanted) {
  return other < wanted ? bytes > other : bytes >= wanted && bytes < other;
}

}  // namespace

Place PlanMemory::acquire(const Layout& layout, bool clean) {
  // Tiles read on past a run of pixels, times zero: of bfloat16 whatever lies there must be finite, so that it is of one form, too.
  clean = clean && (layout.border > 0 || layout.element == Element::bf16);
  const std::size_t bytes = layout.bytes();
  int best = kNothing;
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    const Each& buffer = buffers_[i];
    if (buffer.users > 0 || buffer.clean != clean) continue;
    if (clean) {
      if (buffer.form == layout) best = static_cast<int>(i);
    } else if (best == kNothing || fits_better(buffer.bytes, buffers_[static_cast<std::size_t>(best)].bytes, bytes)) {
      best = static_cast<int>(i);
    }
  }
  if (best == kNothing) {
    best = static_cast<int>(buffers_.size());
    buffers_.emplace_back();
    buffers_.back().clean = clean;
    buffers_.back().form = layout;
  }
  Each& buffer = buffers_[static_cast<std::size_t>(best)];
  buffer.bytes = std::max(buffer.bytes, bytes);
  ++buffer.users;
  return {best, layout};
}

std::vector<std::size_t> PlanMemory::bytes() const {
  std::vector<std::size_t> all;
  for (const Each& buffer : buffers_) all.push_back(buffer.bytes);
  return all;
}

}  // namespace fracskip
