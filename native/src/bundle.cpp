#include "bundle.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "bundle_plan.hpp"
#include "json.hpp"
#include "safetensors.hpp"

namespace fracskip {
namespace {

constexpr int kStreamBits = 8;

using Extents = std::vector<std::int64_t>;

// Hands out tensors by name and knows at the end which were never asked for.
class Tensors {
 public:
  explicit Tensors(Safetensors file) : file_(std::move(file)) {}

  bool has(const std::string& name) const { return file_.tensors.count(name) > 0; }

  std::vector<float> floats(const std::string& name, const Extents& shape) {
    const TensorView view = take(name, TensorType::f32, shape);
    std::vector<float> out(view.elements);
    if (!out.empty()) std::memcpy(out.data(), view.data, out.size() * sizeof(float));
    if (!std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); })) {
      throw BundleError("tensor " + name + " has values that are NaN or infinite");
    }
    return out;
  }

  std::vector<float> positives(const std::string& name, const Extents& shape) {
    std::vector<float> out = floats(name, shape);
    if (!std::all_of(out.begin(), out.end(), [](float x) { return x > 0.f; })) {
      throw BundleError("tensor " + name + " has values that are not above zero");
    }
    return out;
  }

  // Integers of a width's symmetric grid.
  std::vector<std::int8_t> integers(const std::string& name, const Extents& shape, int bits) {
    const TensorView view = take(name, TensorType::i8, shape);
    std::vector<std::int8_t> out(view.elements);
    if (!out.empty()) std::memcpy(out.data(), view.data, out.size());
    const int largest = (1 << (bits - 1)) - 1;
    const auto outside = std::find_if(out.begin(), out.end(),
                                      [&](int w) { return w < -largest || w > largest; });
    if (outside != out.end()) {
      throw BundleError("tensor " + name + " has the weight " + std::to_string(*outside) + ", " +
                        std::to_string(bits) + " bits hold up to " + std::to_string(largest));
    }
    return out;
  }

  void refuse_surplus() const {
    if (!file_.tensors.empty()) {
      throw BundleError("the plan has no place for tensor " +
                        quoted(file_.tensors.begin()->first));
    }
  }

 private:
  TensorView take(const std::string& name, TensorType type, const Extents& shape) {
    const auto found = file_.tensors.find(name);
    if (found == file_.tensors.end()) throw BundleError("tensor " + name + " is missing");
    TensorView view = std::move(found->second);
    file_.tensors.erase(found);
    if (view.type != type || view.shape != shape) {
      throw BundleError("tensor " + name + " is " + type_name(view.type) + " " +
                        shape_name(view.shape) + ", the plan needs " + type_name(type) + " " +
                        shape_name(shape));
    }
    return view;
  }

  Safetensors file_;
};

// `bits` is the weights' width, or 0 for floating point.
void fill_conv(Tensors& tensors, const std::string& name, int bits, Conv& conv) {
  const Extents shape = {conv.out, conv.window.kernel_h, conv.window.kernel_w, conv.in};
  if (bits > 0) {
    conv.weight_i8 = tensors.integers(name + ".weight", shape, bits);
    conv.scale = tensors.floats(name + ".scale", {conv.out});
  } else {
    conv.weight_f32 = tensors.floats(name + ".weight", shape);
  }
  conv.bias = tensors.floats(name + ".bias", {conv.out});
}

std::string option_label(int bits) {
  if (bits == kSkipBits) return "skip";
  return bits == kFullBits ? "full" : std::to_string(bits);
}

void fill_block(Tensors& tensors, const std::string& name, bool integer_stream, Block& block) {
  for (Execution& execution : block.options) {
    if (execution.bits == kSkipBits) continue;
    const std::string option = name + "." + option_label(execution.bits);
    const int bits = execution.bits <= kMaxIntegerBits ? execution.bits : 0;
    for (std::size_t j = 0; j < execution.branch.size(); ++j) {
      fill_conv(tensors, option + "." + std::to_string(j), bits, execution.branch[j]);
    }
    // An 8-bit branch may read the stream's levels as they are.
    const bool levels_fit = integer_stream && bits == kStreamBits;
    if (bits > 0 && (!levels_fit || tensors.has(option + ".input"))) {
      execution.input_scale = tensors.positives(option + ".input", {1})[0];
    }
  }
  if (block.shortcut) {
    fill_conv(tensors, name + ".shortcut", integer_stream ? kStreamBits : 0, *block.shortcut);
  }
}

Linear read_linear(Tensors& tensors, const std::string& name, int in, int out) {
  Linear linear;
  linear.in = in;
  linear.out = out;
  linear.weight = tensors.floats(name + ".weight", {out, in});
  linear.bias = tensors.floats(name + ".bias", {out});
  return linear;
}

// What a block's branch takes, which is what the gate before it sees.
int input_channels(const Block& block) { return block.options.back().branch.front().in; }
int output_channels(const Block& block) { return block.options.back().branch.back().out; }

void fill_gate(Tensors& tensors, const BundlePlan& plan, Network& network) {
  Gate& gate = network.gate;
  if (gate.kind == GateKind::none) return;
  const int options = static_cast<int>(network.option_bits.size());
  const std::int64_t width = gate.width;
  int gated = 0;
  for (const Block& block : network.blocks) {
    if (!block.gated) continue;
    const std::string index = std::to_string(gated++);
    gate.embed.push_back(
        read_linear(tensors, "gate.embed." + index, input_channels(block), gate.width));
    if (gate.kind == GateKind::feedforward) {
      gate.out.push_back(read_linear(tensors, "gate.out." + index, gate.width, options));
    }
  }
  if (plan.budget_input) {
    gate.budget_weight = tensors.floats("gate.budget.weight", {width});
    gate.budget_bias = tensors.floats("gate.budget.bias", {width});
  }
  if (gate.kind != GateKind::recurrent) return;
  gate.lstm_input.in = gate.lstm_hidden.in = gate.width;
  gate.lstm_input.out = gate.lstm_hidden.out = 4 * gate.width;
  gate.lstm_input.weight = tensors.floats("gate.lstm.weight_ih", {4 * width, width});
  gate.lstm_hidden.weight = tensors.floats("gate.lstm.weight_hh", {4 * width, width});
  gate.lstm_input.bias = tensors.floats("gate.lstm.bias", {4 * width});
  gate.out.push_back(read_linear(tensors, "gate.out", gate.width, options));
  if (tensors.has("gate.block_bias")) {
    gate.block_bias = tensors.floats("gate.block_bias", {gated, options});
  }
}

const std::string& plan_text(const Safetensors& file) {
  const auto plan = file.metadata.find("fracskip");
  if (plan == file.metadata.end()) {
    throw BundleError("this is a plain safetensors file without a plan, not a bundle");
  }
  if (file.metadata.size() != 2 || file.metadata.count("digest") == 0) {
    throw BundleError("__metadata__ must hold 'fracskip' and 'digest' and nothing else");
  }
  return plan->second;
}

}  // namespace

Network read_bundle(const std::uint8_t* data, std::size_t size) {
  Safetensors file;
  try {
    file = read_safetensors(data, size);
  } catch (const SafetensorsError& error) {
    throw BundleError(error.what());
  }
  BundlePlan plan = read_plan(plan_text(file));
  Tensors tensors(std::move(file));
  Network network = std::move(plan.network);
  for (std::size_t s = 0; s < network.stem.size(); ++s) {
    StemOp& op = network.stem[s];
    if (op.is_conv) fill_conv(tensors, "stem." + std::to_string(s), 0, op.conv);
  }
  if (network.integer_stream) {
    network.stream_steps = tensors.positives("stream.steps", {plan.stages});
  }
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    fill_block(tensors, "blocks." + std::to_string(i), network.integer_stream, network.blocks[i]);
  }
  fill_gate(tensors, plan, network);
  network.head =
      read_linear(tensors, "head", output_channels(network.blocks.back()), network.classes);
  tensors.refuse_surplus();
  return network;
}

}  // namespace fracskip
