// Follows one image's shape through the parts of a network, within limits that keep memory bounded.
#include <cstdint>
#include <string>
#include <vector>

#include "io/bundle_plan.hpp"
#include "io/json.hpp"
#include "io/shapes.hpp"

namespace fracskip {
namespace {

class ShapeCheck {
 public:
  explicit ShapeCheck(const Network& network) : network_(network) {}

  std::vector<int> run() {
    Shape shape = limits_.bounded({network_.channels, network_.height, network_.width}, "the image");
    std::vector<int> gated_channels;
    for (std::size_t i = 0; i < network_.parts.size(); ++i) {
      const Part& part = network_.parts[i];
      const std::string name = "part " + std::to_string(i) + " (" + quoted(part.name) + ")";
      if (part.gated) gated_channels.push_back(static_cast<int>(shape.channels));
      std::vector<int> widths;
      for (const Way& way : part.ways) {
        if (way.bits != kSkipBits) widths.push_back(way.bits);
      }
      const Shape out = follow(part.branch, shape, widths, name);
      if (part.residual) {
        const Shape shortcut = follow(part.shortcut, shape, {part.shortcut_bits}, "the shortcut of " + name);
        if (!(shortcut == out)) {
          refuse(name + " has a branch that gives " + out.text() + " and a shortcut that gives " + shortcut.text());
        }
      }
      if (network_.integer_stream && out.height * out.width > kMaxSum / kStreamLevels) {  // a mean adds them up
        refuse(name + " has channels whose levels add up to more than 32 bits hold");
      }
      shape = out;
    }
    if (!(shape == Shape{network_.classes, 1, 1})) {
      refuse("the last part gives " + shape.text() + ", not " + std::to_string(network_.classes) + " logits");
    }
    return gated_channels;
  }

 private:
  // `widths` are those that convolutions are executed at.
  Shape follow(const Program& program, const Shape& taken, const std::vector<int>& widths, const std::string& name) {
    std::vector<Shape> values = {taken};
    for (const Op& op : program) {
      const std::string what = name + ", operation " + std::to_string(values.size() - 1);
      const Shape& in = values[static_cast<std::size_t>(op.in)];
      Shape out = in;
      switch (op.kind) {
        case OpKind::conv: out = convolve(in, op, widths, what); break;
        case OpKind::pool: out = limits_.slide(in, op.window, what); break;
        case OpKind::mean: out.height = out.width = 1; break;
        case OpKind::add:
        case OpKind::mul: {
          const Shape& other = values[static_cast<std::size_t>(op.other)];
          if (!(other == in) && !(other == Shape{in.channels, 1, 1})) {
            refuse(what + " cannot take " + in.text() + " and " + other.text());
          }
          break;
        }
        case OpKind::affine:
        case OpKind::norm: check_channels(op, in, what); break;
        case OpKind::act: break;
      }
      values.push_back(limits_.bounded(out, what));
    }
    return values.back();
  }

  static void check_channels(const Op& op, const Shape& in, const std::string& what) {
    if (op.taken != in.channels) {
      refuse(what + " takes " + std::to_string(op.taken) + " channels and gets " + std::to_string(in.channels));
    }
  }

  Shape convolve(const Shape& in, const Op& op, const std::vector<int>& widths, const std::string& what) {
    check_channels(op, in, what);
    const std::int64_t taps = std::int64_t{op.window.kernel_h} * op.window.kernel_w, each = op.taken / op.groups;
    // As they are packed: groups that are executed together have zeros for one another.
    const std::int64_t packed = taps * std::min<std::int64_t>(op.taken, each * grouping_of(op).together);
    for (int bits : widths) {
      limits_.weigh(packed, op.given, what);
      Limits::add_up(taps * each, bits, what);
    }
    // Checked wide: dilated kernels need not fit an int.
    const std::int64_t reach_h = std::int64_t{op.window.kernel_h - 1} * op.dilation_h + 1;
    const std::int64_t reach_w = std::int64_t{op.window.kernel_w - 1} * op.dilation_w + 1;
    if (reach_h > in.height + op.window.pad_top + op.window.pad_bottom || reach_w > in.width + op.window.pad_left + op.window.pad_right) {
      refuse(what + " has a kernel that is larger than its input, " + in.text());
    }
    Shape out = limits_.slide(in, op.reach(), what);
    out.channels = op.given;
    return out;
  }

  const Network& network_;
  Limits limits_;
};

}  // namespace

std::vector<int> check_shapes(const Network& network) { return ShapeCheck(network).run(); }

}  // namespace fracskip
