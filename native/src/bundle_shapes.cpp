// Follows one image's shape through a plan's network, within limits that keep memory bounded.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "bundle_plan.hpp"
#include "json.hpp"

namespace fracskip {
namespace {

constexpr std::int64_t kMaxActivationBytes = std::int64_t{1} << 30;
// Of all activations together, as an engine may keep them: in tiles, channels in blocks.
constexpr std::int64_t kMaxTotalBytes = std::int64_t{1} << 32;
constexpr std::int64_t kTileEdge = 8, kChannelBlock = 16;
constexpr std::int64_t kMaxWeights = std::numeric_limits<std::int32_t>::max();  // all together
constexpr std::int64_t kMaxSum = std::numeric_limits<std::int32_t>::max();
constexpr int kStreamLevels = 255;

struct Shape {
  std::int64_t channels = 0, height = 0, width = 0;

  bool operator==(const Shape& other) const {
    return channels == other.channels && height == other.height && width == other.width;
  }

  std::string text() const {
    return std::to_string(channels) + " channels of " + std::to_string(height) + " x " +
           std::to_string(width);
  }
};

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

[[noreturn]] void fail(const std::string& what) { throw BundleError("plan: " + what); }

class Walk {
 public:
  explicit Walk(const Network& network) : network_(network) {}

  void run() {
    Shape shape = bounded({network_.channels, network_.height, network_.width}, "the image");
    for (std::size_t s = 0; s < network_.stem.size(); ++s) {
      const StemOp& op = network_.stem[s];
      const std::string what = "stem " + std::to_string(s);
      shape = op.is_conv ? convolve(shape, op.conv, {0}, what)
                         : bounded(slide(shape, op.conv.window, what), what);
    }
    check_sums(shape, "the stem");
    for (const Block& block : network_.blocks) {
      const std::string name = "block " + quoted(block.name);
      shape = walk_block(shape, block, name);
      check_sums(shape, name);
    }
  }

 private:
  // Extents are at most 2^16 + 2 * 2^16, or a window's result of that, so planes cannot overflow.
  Shape bounded(const Shape& shape, const std::string& what) {
    const std::int64_t plane = shape.height * shape.width;
    if (plane > kMaxActivationBytes || plane * shape.channels * 4 > kMaxActivationBytes) {
      fail(what + " has activations of more than 1 GiB: " + shape.text());
    }
    total_bytes_ += round_up(shape.height, kTileEdge) * round_up(shape.width, kTileEdge) *
                    round_up(shape.channels, kChannelBlock) * 4;
    if (total_bytes_ > kMaxTotalBytes) fail("all activations together take more than 4 GiB");
    return shape;
  }

  // What a window makes of a shape. An engine may keep the input with a border as wide as the
  // larger padding on every side, so that is bounded too.
  Shape slide(const Shape& in, const Window& window, const std::string& what) {
    const std::int64_t border = std::max(window.pad_h, window.pad_w);
    bounded({in.channels, in.height + 2 * border, in.width + 2 * border}, what);
    const std::int64_t height = in.height + 2 * std::int64_t{window.pad_h} - window.kernel_h;
    const std::int64_t width = in.width + 2 * std::int64_t{window.pad_w} - window.kernel_w;
    if (height < 0 || width < 0) {
      fail(what + " has a kernel that is larger than its input, " + in.text());
    }
    return {in.channels, height / window.stride_h + 1, width / window.stride_w + 1};
  }

  // `widths` are those it is executed at.
  Shape convolve(const Shape& in, const Conv& conv, const std::vector<int>& widths,
                 const std::string& what) {
    if (conv.in != in.channels) {
      fail(what + " takes " + std::to_string(conv.in) + " channels and gets " +
           std::to_string(in.channels));
    }
    const std::int64_t window = std::int64_t{conv.window.kernel_h} * conv.window.kernel_w;
    const std::int64_t products = window * conv.in;  // at most 2^48
    for (int bits : widths) {
      if (products > kMaxWeights || products * conv.out > kMaxWeights - weights_) {
        fail(what + " brings the weights to 2^31 or more");
      }
      weights_ += products * conv.out;
      if (bits == 0 || bits > kMaxIntegerBits) continue;
      const std::int64_t largest = ((std::int64_t{1} << bits) - 1) * ((1 << (bits - 1)) - 1);
      if (products > kMaxSum / largest) fail(what + " adds up more products than 32 bits hold");
    }
    Shape out = slide(in, conv.window, what);
    out.channels = conv.out;
    return bounded(out, what);
  }

  Shape walk_block(const Shape& in, const Block& block, const std::string& name) {
    std::vector<int> widths;
    for (const Execution& execution : block.options) {
      if (!execution.branch.empty()) widths.push_back(execution.bits);
    }
    Shape out = in, shortcut = in;
    const std::vector<Conv>& branch = block.options.back().branch;  // the widest is never skip
    for (std::size_t j = 0; j < branch.size(); ++j) {
      out = convolve(out, branch[j], widths, name + ", convolution " + std::to_string(j));
    }
    if (block.shortcut) {
      const int bits = network_.integer_stream ? kMaxIntegerBits : 0;
      shortcut = convolve(in, *block.shortcut, {bits}, name + ", shortcut");
    }
    if (!(shortcut == out)) {
      fail(name + " has a branch that ends with " + out.text() +
           " and a shortcut that ends with " + shortcut.text());
    }
    return out;
  }

  // Gates and head add up a channel's levels.
  void check_sums(const Shape& shape, const std::string& what) const {
    if (network_.integer_stream && shape.height * shape.width > kMaxSum / kStreamLevels) {
      fail(what + " has channels whose levels add up to more than 32 bits hold");
    }
  }

  const Network& network_;
  std::int64_t total_bytes_ = 0;
  std::int64_t weights_ = 0;
};

}  // namespace

void check_shapes(const Network& network) { Walk(network).run(); }

}  // namespace fracskip
