// Reads the network of a plan of version 2.
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "io/bundle_plan.hpp"

namespace fracskip {
namespace {

constexpr std::size_t kMaxOps = 4096;
constexpr const char* kActs[] = {"none", "relu", "relu6", "hardsigmoid", "hardswish", "sigmoid", "silu", "gelu"};

Act read_act(const Field& field) {
  int act = 0;
  for (const char* name : kActs) {
    if (field.text() == name) return static_cast<Act>(act);
    ++act;
  }
  field.fail("is the unknown activation " + quoted(field.text()));
}

// `known`: the last value that there is.
int read_value(const Field& field, int known) {
  if (known < 0) field.fail("takes a value that nothing gives");
  return field.integer(0, known);
}

void read_conv(const Field& field, Op& op) {
  field.members({"op", "in", "channels", "kernel", "stride", "padding", "dilation", "groups", "act"});
  op.kind = OpKind::conv;
  std::tie(op.taken, op.given) = field["channels"].pair(1, kMaxExtent);
  op.window = read_window(field);
  std::tie(op.dilation_h, op.dilation_w) = field["dilation"].pair(1, kMaxExtent);
  op.groups = field["groups"].integer(1, kMaxExtent);
  if (op.taken % op.groups != 0 || op.given % op.groups != 0) field["groups"].fail("do not divide the channels");
  op.act = read_act(field["act"]);
}

void read_pool(const Field& field, Op& op) {
  field.members({"op", "in", "kind", "kernel", "stride", "padding", "count_padding"});
  op.kind = OpKind::pool;
  const std::string& kind = field["kind"].text();
  if (kind != "max" && kind != "mean") field["kind"].fail("is neither 'max' nor 'mean'");
  op.largest = kind == "max";
  op.window = read_window(field);
  if (2 * op.window.pad_h > op.window.kernel_h || 2 * op.window.pad_w > op.window.kernel_w) {
    field.fail("pads by more than half of its kernel");
  }
  op.count_padding = field["count_padding"].flag();
  if (op.largest && op.count_padding) field.fail("counts padding, of which there is none in a maximum");
}

Op read_op(const Field& field, int known) {
  Op op;
  const std::string& kind = field["op"].text();
  if (kind == "conv") {
    read_conv(field, op);
  } else if (kind == "pool") {
    read_pool(field, op);
  } else if (kind == "mean") {
    field.members({"op", "in"});
    op.kind = OpKind::mean;
  } else if (kind == "act") {
    field.members({"op", "in", "act"});
    op.act = read_act(field["act"]);
    if (op.act == Act::none) field["act"].fail("must not be 'none' by itself");
  } else if (kind == "add" || kind == "mul") {
    field.members({"op", "in"});
    op.kind = kind == "add" ? OpKind::add : OpKind::mul;
  } else if (kind == "affine") {
    field.members({"op", "in", "channels"});
    op.kind = OpKind::affine;
    op.taken = op.given = field["channels"].integer(1, kMaxExtent);
  } else if (kind == "norm") {
    field.members({"op", "in", "channels", "eps"});
    op.kind = OpKind::norm;
    op.taken = op.given = field["channels"].integer(1, kMaxExtent);
    const double eps = field["eps"].number();
    if (!(eps > 0.0 && eps <= 3e38)) field["eps"].fail("must be above zero");
    op.eps = static_cast<float>(eps);
  } else {
    field["op"].fail("is the unknown operation " + quoted(kind));
  }
  const std::vector<Field> in = field["in"].items();
  if (in.size() != (op.takes_two() ? 2 : 1)) field["in"].fail("has not as many values as it takes");
  op.in = read_value(in[0], known);
  if (op.takes_two()) op.other = read_value(in[1], known);
  return op;
}

Program read_program(const Field& field) {
  const std::vector<Field> items = field.items();
  if (items.size() > kMaxOps) field.fail("has more than 4,096 operations");
  Program program;
  std::vector<bool> used(items.size() + 1);
  for (const Field& item : items) {
    program.push_back(read_op(item, static_cast<int>(program.size())));
    used[static_cast<std::size_t>(program.back().in)] = true;
    if (program.back().takes_two()) used[static_cast<std::size_t>(program.back().other)] = true;
  }
  for (std::size_t value = 0; value < items.size(); ++value) {
    if (!used[value]) field.fail("gives value " + std::to_string(value) + ", which nothing uses");
  }
  return program;
}

// `fixed_bits`: of convolutions that every image executes.
Part read_part(const Field& field, const std::vector<int>& options, int fixed_bits) {
  Part part;
  part.gated = field["gated"].flag();
  part.name = field["name"].text();
  if (!part.gated) {
    field.members({"name", "gated", "ops"});
    part.branch = read_program(field["ops"]);
    part.ways.push_back({fixed_bits, {}});
    return part;
  }
  field.members({"name", "gated", "can_skip", "hands_on", "branch", "shortcut", "after"});
  if (part.name.empty()) field.fail("has no name");
  part.can_skip = field["can_skip"].flag();
  part.hands_on = field["hands_on"].flag();
  part.branch = read_program(field["branch"]);
  if (part.branch.empty()) field.fail("has an empty branch");
  part.shortcut = read_program(field["shortcut"]);
  for (const Op& op : read_program(field["after"])) {
    if (op.kind != OpKind::act) field["after"].fail("holds something other than activations");
    part.after.push_back(op.act);
  }
  if (!part.can_skip && (part.hands_on || !part.shortcut.empty() || !part.after.empty())) {
    field.fail("can't be skipped, so its branch must be all there is");
  }
  if (part.hands_on && !part.shortcut.empty()) field.fail("has a projection and can't hand on what it takes");
  for (int bits : options) part.ways.push_back({bits, {}});
  return part;
}

// What an 8-bit stream asks of its parts besides.
void check_stream(const GraphNetwork& network, const std::vector<Field>& items) {
  if (items.size() == 1) items.front().fail("is all there is, and an 8-bit stream flows between parts");
  if (network.parts.front().gated) items.front().fail("begins an 8-bit stream and must be fixed");
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (network.parts[i].branch.empty()) items[i].fail("has no operations, in an 8-bit stream");
    const std::vector<Act>& after = network.parts[i].after;
    if (!after.empty() && after != std::vector<Act>{Act::relu}) items[i]["after"].fail("must be empty or 'relu' in an 8-bit stream");
  }
}

}  // namespace

BundleGraph read_graph(const Field& root) {
  BundleGraph plan;
  GraphNetwork& network = plan.network;
  read_image(root["image"], network);
  network.option_bits = read_options(root["options"]);
  const std::string& stream = root["stream"].text();
  if (stream != "float" && stream != "int8") root["stream"].fail("must be 'float' or 'int8'");
  network.integer_stream = stream == "int8";
  const Field shapes = root["network"];
  shapes.members({"classes", "parts"});
  network.classes = shapes["classes"].integer(1, kMaxExtent);
  const std::vector<Field> items = shapes["parts"].items();
  if (items.empty()) shapes["parts"].fail("must not be empty");
  if (items.size() > kMaxBlocks) shapes["parts"].fail("has more than 4,096 parts");
  std::set<std::string> names;
  std::size_t executions = 0;
  for (const Field& item : items) {
    Part part = read_part(item, network.option_bits, network.integer_stream ? kStreamBits : kFullBits);
    executions += part.branch.size() * part.ways.size() + part.shortcut.size();
    if (executions > kMaxExecutions) shapes["parts"].fail("have too many operations");
    if (part.gated && !names.insert(part.name).second) item.fail("has the name of another gated part");
    network.parts.push_back(std::move(part));
  }
  if (network.integer_stream) check_stream(network, items);
  plan.gate = read_gate(root["gate"], network);
  read_texts(root, network, plan.gate);
  plan.gated_channels = check_shapes(network);
  return plan;
}

}  // namespace fracskip
