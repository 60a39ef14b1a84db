#include "io/bundle_plan.hpp"

#include <set>
#include <string>
#include <utility>
#include <vector>

namespace fracskip {
namespace {

Conv read_geometry(const Field& field) {
  Conv conv;
  conv.in = field["in"].integer(1, kMaxExtent);
  conv.out = field["out"].integer(1, kMaxExtent);
  conv.window = read_window(field);
  return conv;
}

Conv read_conv(const Field& field) {
  field.members({"in", "out", "kernel", "stride", "padding"});
  return read_geometry(field);
}

StemOp read_stem_op(const Field& field) {
  StemOp op;
  if (field["op"].text() == "conv") {
    field.members({"op", "in", "out", "kernel", "stride", "padding"});
    op.conv = read_geometry(field);
    return op;
  }
  if (field["op"].text() != "maxpool") field.fail("is neither 'conv' nor 'maxpool'");
  field.members({"op", "kernel", "stride", "padding"});
  op.is_conv = false;
  op.conv.window = read_window(field);
  const Window& window = op.conv.window;
  if (2 * window.pad_h > window.kernel_h || 2 * window.pad_w > window.kernel_w) {
    field.fail("pads by more than half of its kernel");
  }
  return op;
}

Block read_block(const Field& field, const std::vector<int>& network_options) {
  field.members({"name", "gated", "options", "branch", "shortcut"});
  Block block;
  block.name = field["name"].text();
  if (block.name.empty()) field.fail("has no name");
  block.gated = field["gated"].flag();
  const std::vector<int> bits = read_options(field["options"]);
  if (block.gated && bits != network_options) {
    field.fail("is gated and must have the network's options");
  }
  if (!block.gated && bits.size() != 1) field.fail("is not gated and must have one option");
  std::vector<Conv> branch;
  for (const Field& item : field["branch"].items()) branch.push_back(read_conv(item));
  if (branch.empty()) field.fail("has an empty branch");
  if (branch.size() * bits.size() > kMaxExecutions) field.fail("has too many convolutions");
  for (int option : bits) {
    Execution execution;
    execution.bits = option;
    if (option != kSkipBits) execution.branch = branch;
    block.options.push_back(std::move(execution));
  }
  if (!field["shortcut"].is_null()) block.shortcut = read_conv(field["shortcut"]);
  return block;
}

void read_blocks(const Field& field, BundlePlan& plan) {
  const std::vector<Field> items = field.items();
  if (items.empty()) field.fail("must not be empty");
  if (items.size() > kMaxBlocks) field.fail("has more than 4,096 blocks");
  std::set<std::string> names;
  std::size_t executions = 0;
  for (const Field& item : items) {
    Block block = read_block(item, plan.network.option_bits);
    for (const Execution& execution : block.options) executions += execution.branch.size();
    if (executions > kMaxExecutions) field.fail("has too many convolutions");
    if (!names.insert(block.name).second) item.fail("has the name of another block");
    plan.stages += block.shortcut.has_value();
    plan.network.blocks.push_back(std::move(block));
  }
}

}  // namespace

BundlePlan read_plan(const Field& root) {
  BundlePlan plan;
  Network& network = plan.network;
  read_image(root["image"], network);
  network.option_bits = read_options(root["options"]);
  const std::string& stream = root["stream"].text();
  if (stream != "float" && stream != "int8") root["stream"].fail("is neither 'float' nor 'int8'");
  network.integer_stream = stream == "int8";

  const Field shapes = root["network"];
  shapes.members({"stem", "blocks", "classes"});
  network.classes = shapes["classes"].integer(1, kMaxExtent);
  for (const Field& item : shapes["stem"].items()) network.stem.push_back(read_stem_op(item));
  if (network.stem.empty() || !network.stem[0].is_conv) {
    shapes["stem"].fail("must begin with a convolution");
  }
  read_blocks(shapes["blocks"], plan);
  plan.gate = read_gate(root["gate"], network);
  read_texts(root, network, plan.gate);
  check_shapes(network);
  return plan;
}

}  // namespace fracskip
