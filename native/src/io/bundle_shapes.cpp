// Follows one image's shape through a plan's network, within limits that keep memory bounded.
#include <cstdint>
#include <string>
#include <vector>

#include "io/bundle_plan.hpp"
#include "io/json.hpp"
#include "io/shapes.hpp"

namespace fracskip {
namespace {

class Walk {
 public:
  explicit Walk(const Network& network) : network_(network) {}

  void run() {
    Shape shape = limits_.bounded({network_.channels, network_.height, network_.width}, "the image");
    for (std::size_t s = 0; s < network_.stem.size(); ++s) {
      const StemOp& op = network_.stem[s];
      const std::string what = "stem " + std::to_string(s);
      shape = op.is_conv ? convolve(shape, op.conv, {0}, what)
                         : limits_.bounded(limits_.slide(shape, op.conv.window, what), what);
    }
    check_sums(shape, "the stem");
    for (const Block& block : network_.blocks) {
      const std::string name = "block " + quoted(block.name);
      shape = walk_block(shape, block, name);
      check_sums(shape, name);
    }
  }

 private:
  // `widths` are those it is executed at.
  Shape convolve(const Shape& in, const Conv& conv, const std::vector<int>& widths,
                 const std::string& what) {
    if (conv.in != in.channels) {
      refuse(what + " takes " + std::to_string(conv.in) + " channels and gets " + std::to_string(in.channels));
    }
    const std::int64_t window = std::int64_t{conv.window.kernel_h} * conv.window.kernel_w;
    const std::int64_t products = window * conv.in;  // at most 2^48
    for (int bits : widths) {
      limits_.weigh(products, conv.out, what);
      Limits::add_up(products, bits, what);
    }
    Shape out = limits_.slide(in, conv.window, what);
    out.channels = conv.out;
    return limits_.bounded(out, what);
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
      refuse(name + " has a branch that ends with " + out.text() + " and a shortcut that ends with " + shortcut.text());
    }
    return out;
  }

  // Gates and head add up a channel's levels.
  void check_sums(const Shape& shape, const std::string& what) const {
    if (network_.integer_stream && shape.height * shape.width > kMaxSum / kStreamLevels) {
      refuse(what + " has channels whose levels add up to more than 32 bits hold");
    }
  }

  const Network& network_;
  Limits limits_;
};

}  // namespace

void check_shapes(const Network& network) { Walk(network).run(); }

}  // namespace fracskip
