#include "io/bundle.hpp"

#include <string>
#include <utility>
#include <vector>

#include "io/bundle_plan.hpp"
#include "io/bundle_tensors.hpp"
#include "io/json.hpp"
#include "io/safetensors.hpp"

namespace fracskip {
namespace {

constexpr std::size_t kMaxPlanValues = std::size_t{1} << 18;

// `bits` is the weights' width, or 0 for floating point.
void fill_conv(Tensors& tensors, const std::string& name, int bits, Conv& conv) {
  const Extents shape = {conv.out, conv.window.kernel_h, conv.window.kernel_w, conv.in};
  if (bits > 0) {
    conv.weight_i8 = tensors.integers(name + ".weight", shape, bits);
    conv.scale = tensors.floats(name + ".scale", {conv.out});
    conv.most_level = (1 << bits) - 1;
  } else {
    conv.weight_f32 = tensors.floats(name + ".weight", shape);
  }
  conv.bias = tensors.floats(name + ".bias", {conv.out});
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

Network fill_network(BundlePlan plan, Tensors tensors) {
  Network network = std::move(plan.network);
  for (std::size_t s = 0; s < network.stem.size(); ++s) {
    StemOp& op = network.stem[s];
    if (op.is_conv) fill_conv(tensors, "stem." + std::to_string(s), 0, op.conv);
  }
  if (network.integer_stream) {
    network.stream_steps = tensors.positives("stream.steps", {plan.stages});
  }
  std::vector<int> gated_channels;
  for (std::size_t i = 0; i < network.blocks.size(); ++i) {
    const Block& block = network.blocks[i];
    fill_block(tensors, "blocks." + std::to_string(i), network.integer_stream, network.blocks[i]);
    if (block.gated) gated_channels.push_back(block.options.back().branch.front().in);
  }
  fill_gate(tensors, plan.gate, gated_channels, network);
  network.head = tensors.linear("head", network.blocks.back().options.back().branch.back().out, network.classes);
  tensors.refuse_surplus();
  return network;
}

// 1 or 2.
int read_version(const Field& root) {
  const bool known = root.has("schema") && root.has("version") && root["schema"].text() == "fracskip.bundle";
  const int version = known ? root["version"].integer(0, kMaxExtent) : 0;
  if (version != 1 && version != 2) root.fail("is not of schema 'fracskip.bundle', version 1 or 2");
  root.members({"schema", "version", "name", "source", "data_name", "class_names", "image",
                "options", "stream", "target", "cost", "network", "gate"});
  return version;
}

}  // namespace

AnyNetwork read_bundle(const std::uint8_t* data, std::size_t size) {
  Safetensors file;
  Json json;
  try {
    file = read_safetensors(data, size);
    json = parse_json(plan_text(file), {64, kMaxPlanValues});
  } catch (const SafetensorsError& error) {
    throw BundleError(error.what());
  } catch (const JsonError& error) {
    throw BundleError(std::string("plan: ") + error.what());
  }
  const Field root(json, "");
  if (read_version(root) == 1) return fill_network(read_plan(root), Tensors(std::move(file)));
  return fill_graph(read_graph(root), Tensors(std::move(file)));
}

}  // namespace fracskip
