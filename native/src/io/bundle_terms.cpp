// Fills a network with its tensors.
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "io/bundle_tensors.hpp"

namespace fracskip {
namespace {

// The levels of an 8-bit stream, as a part takes or gives them.
struct Grid {
  float step = 1.f;
  int zero = 0;
};

int read_zero(Tensors& tensors, const std::string& name, int bits) {
  if (!tensors.has(name)) return 0;
  const float zero = tensors.floats(name, {1})[0];
  if (zero < 0.f || zero > static_cast<float>((1 << bits) - 1) || zero != std::floor(zero)) {
    throw BundleError("tensor " + name + " is no level of " + std::to_string(bits) + " bits");
  }
  return static_cast<int>(zero);
}

// What may stand in for a convolution's `input`.
struct Source {
  const Op* feeder = nullptr;    // a convolution, in units of its step
  const Grid* stream = nullptr;  // the part before, with its levels

  bool any() const { return feeder || stream; }
};

// Of an op, at a width (0: in floating point).
Terms read_terms(Tensors& tensors, const std::string& name, const Op& op, int bits, const Source& source) {
  Terms terms;
  if (op.kind == OpKind::affine || op.kind == OpKind::norm) {
    terms.gain = tensors.floats(name + ".gain", {op.given});
    terms.bias = tensors.floats(name + ".bias", {op.given});
  }
  if (op.kind != OpKind::conv) return terms;
  const Extents shape = {op.given, op.window.kernel_h, op.window.kernel_w, op.taken / op.groups};
  terms.bias = tensors.floats(name + ".bias", {op.given});
  if (bits == 0) {
    terms.weight_f32 = tensors.floats(name + ".weight", shape);
    return terms;
  }
  terms.weight_i8 = tensors.integers(name + ".weight", shape, bits);
  terms.scale = tensors.floats(name + ".scale", {op.given});
  if (!source.any() || tensors.has(name + ".input")) terms.input = tensors.positives(name + ".input", {1})[0];
  terms.zero = read_zero(tensors, name + ".zero", bits);
  if (terms.input != 0.f) return terms;
  if (source.feeder && terms.zero != 0 && source.feeder->act != Act::none) {
    throw BundleError("tensor " + name + ".zero is not 0, and a clamp must do what an activation would");
  }
  if (source.stream && terms.zero != source.stream->zero) {
    throw BundleError("tensor " + name + ".zero is not that of the part before, whose levels are taken as they are");
  }
  return terms;
}

// `stream`: null where value 0 is float32.
std::vector<Terms> read_program(Tensors& tensors, const std::string& name, const Program& program, int width, const Grid* stream) {
  const int bits = width <= kMaxIntegerBits ? width : 0;
  std::vector<Terms> terms;
  const std::vector<const Op*> feeders = feeders_of(program);
  for (std::size_t j = 0; j < program.size(); ++j) {
    Source source;
    if (bits > 0) source.feeder = feeders[j];
    if (bits == kStreamBits && takes_first(program[j])) source.stream = stream;
    terms.push_back(read_terms(tensors, name + "." + std::to_string(j), program[j], bits, source));
  }
  return terms;
}

// The grid of what a part gives; `before`: of what it takes.
void read_grid(Tensors& tensors, const std::string& name, const Grid& before, Part& part) {
  part.step = tensors.positives(name + ".step", {1})[0];
  part.zero = read_zero(tensors, name + ".zero", kStreamBits);
  if (!part.after.empty() && part.zero != 0) {
    throw BundleError("tensor " + name + ".zero is not 0, and a clamp must do what an activation would");
  }
  if (part.residual && part.shortcut.empty() && (part.step != before.step || part.zero != before.zero)) {
    throw BundleError("tensor " + name + (part.step != before.step ? ".step" : ".zero") + " is not that of the part before, whose levels are handed on");
  }
}

}  // namespace

Network fill_network(BundlePlan plan, Tensors& tensors) {
  Network network = std::move(plan.network);
  const bool stream = network.integer_stream;
  Grid before;
  for (std::size_t i = 0; i < network.parts.size(); ++i) {
    Part& part = network.parts[i];
    const std::string name = "parts." + std::to_string(i);
    const Grid* taken = stream && i > 0 ? &before : nullptr;
    for (Way& way : part.ways) {
      if (way.bits == kSkipBits) continue;
      way.terms = read_program(tensors, name + "." + option_label(way.bits), part.branch, way.bits, taken);
    }
    part.shortcut_terms = read_program(tensors, name + ".shortcut", part.shortcut, part.shortcut_bits, taken);
    if (!stream || i + 1 == network.parts.size()) continue;  // the last part gives values
    read_grid(tensors, name, before, part);
    before = {part.step, part.zero};
  }
  fill_gate(tensors, plan.budget_input, plan.gated_channels, network);
  return network;
}

}  // namespace fracskip
