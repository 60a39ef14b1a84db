#include "io/bundle_plan.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace fracskip {
namespace {

constexpr const char* kSchema = "fracskip.bundle";
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

void read_conv(const Field& field, int version, Op& op) {
  field.members({"op", "in", "channels", "kernel", "stride", "padding", "dilation", "groups", "act"});
  op.kind = OpKind::conv;
  std::tie(op.taken, op.given) = field["channels"].pair(1, kMaxExtent);
  op.window = read_window(field, version);
  std::tie(op.dilation_h, op.dilation_w) = field["dilation"].pair(1, kMaxExtent);
  op.groups = field["groups"].integer(1, kMaxExtent);
  if (op.taken % op.groups != 0 || op.given % op.groups != 0) field["groups"].fail("do not divide the channels");
  op.act = read_act(field["act"]);
}

void read_pool(const Field& field, int version, Op& op) {
  field.members({"op", "in", "kind", "kernel", "stride", "padding", "count_padding"});
  op.kind = OpKind::pool;
  const std::string& kind = field["kind"].text();
  if (kind != "max" && kind != "mean") field["kind"].fail("is neither 'max' nor 'mean'");
  op.largest = kind == "max";
  op.window = read_window(field, version);
  op.count_padding = field["count_padding"].flag();
  if (op.largest && op.count_padding) field.fail("counts padding, of which there is none in a maximum");
  const Window& w = op.window;
  const bool within = 2 * std::max(w.pad_top, w.pad_bottom) <= w.kernel_h && 2 * std::max(w.pad_left, w.pad_right) <= w.kernel_w;
  if (!within && !op.count_padding) field.fail("pads by more than half of its kernel, and does not count it");
}

Op read_op(const Field& field, int version, int known) {
  Op op;
  const std::string& kind = field["op"].text();
  if (kind == "conv") {
    read_conv(field, version, op);
  } else if (kind == "pool") {
    read_pool(field, version, op);
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

Program read_program(const Field& field, int version) {
  const std::vector<Field> items = field.items();
  if (items.size() > kMaxOps) field.fail("has more than 4,096 operations");
  Program program;
  std::vector<bool> used(items.size() + 1);
  for (const Field& item : items) {
    program.push_back(read_op(item, version, static_cast<int>(program.size())));
    used[static_cast<std::size_t>(program.back().in)] = true;
    if (program.back().takes_two()) used[static_cast<std::size_t>(program.back().other)] = true;
  }
  for (std::size_t value = 0; value < items.size(); ++value) {
    if (!used[value]) field.fail("gives value " + std::to_string(value) + ", which nothing uses");
  }
  return program;
}

void read_shortcut(const Field& field, int version, Part& part) {
  part.shortcut = read_program(field["shortcut"], version);
  const Field option = field["shortcut_option"];
  if (part.shortcut.empty() != option.is_null()) option.fail("must be null if and only if there is no operation in the shortcut");
  if (!option.is_null()) part.shortcut_bits = read_executed(option);
  for (const Op& op : read_program(field["after"], version)) {
    if (op.kind != OpKind::act) field["after"].fail("holds something other than activations");
    part.after.push_back(op.act);
  }
}

Part read_part(const Field& field, int version, const std::vector<int>& network_options) {
  field.members({"name", "gated", "options", "residual", "skip_is_identity", "branch", "shortcut", "shortcut_option", "after"});
  Part part;
  part.name = field["name"].text();
  part.gated = field["gated"].flag();
  part.residual = field["residual"].flag();
  part.skip_is_identity = field["skip_is_identity"].flag();
  if (part.gated && part.name.empty()) field.fail("has no name");
  const std::vector<int> options = read_options(field["options"]);
  if (part.gated && options != network_options) field.fail("is gated and must have the network's options");
  if (!part.gated && options.size() != 1) field.fail("is not gated and must have one option");
  for (int bits : options) part.ways.push_back({bits, {}});
  part.branch = read_program(field["branch"], version);
  if (part.branch.empty()) field.fail("has an empty branch");
  read_shortcut(field, version, part);
  if (!part.residual && (part.skip_is_identity || !part.shortcut.empty() || !part.after.empty())) {
    field.fail("has no residual sum, so its branch must be all there is");
  }
  if (part.skip_is_identity && !part.shortcut.empty()) field.fail("has a projection, so skipping it is no identity");
  return part;
}

void read_parts(const Field& field, int version, Network& network) {
  const std::vector<Field> items = field.items();
  if (items.empty()) field.fail("must not be empty");
  if (items.size() > kMaxParts) field.fail("has more than 4,096 parts");
  std::set<std::string> names;
  std::size_t executions = 0;
  for (const Field& item : items) {
    Part part = read_part(item, version, network.option_bits);
    const std::size_t skips = part.ways.front().bits == kSkipBits;
    executions += part.branch.size() * (part.ways.size() - skips) + part.shortcut.size();
    if (executions > kMaxExecutions) field.fail("has too many operations");
    if (part.gated && !names.insert(part.name).second) item.fail("has the name of another gated part");
    const bool ends = network.parts.empty() || network.parts.size() + 1 == items.size();
    if (ends && (part.gated || part.residual)) item.fail("is the first or the last, and must be neither gated nor residual");
    if (network.integer_stream && !part.after.empty() && part.after != std::vector<Act>{Act::relu}) {
      item["after"].fail("must be empty or 'relu' in an 8-bit stream");
    }
    network.parts.push_back(std::move(part));
  }
}

int read_version(const Field& root) {
  if (!root.has("schema") || !root.has("version")) root.fail("lacks 'schema' or 'version'");
  const std::string& schema = root["schema"].text();
  const int version = root["version"].integer(0, kMaxExtent);
  if (schema == kSchema && version >= kOldestPlanVersion && version <= kPlanVersion) return version;
  throw BundleError("this is " + quoted(schema) + " version " + std::to_string(version) + "; this fracskip reads " + quoted(kSchema) + " versions " +
                    std::to_string(kOldestPlanVersion) + " to " + std::to_string(kPlanVersion) + ": export its checkpoint again, with fracskip export CHECKPOINT --to FILE.fsk");
}

}  // namespace

BundlePlan read_plan(const Field& root) {
  const int version = read_version(root);
  root.members({"schema", "version", "name", "source", "data_name", "class_names", "image",
                "options", "stream", "cost", "network", "gate", "operating_points"});
  BundlePlan plan;
  Network& network = plan.network;
  read_image(root["image"], network);
  network.option_bits = read_options(root["options"]);
  const std::string& stream = root["stream"].text();
  if (stream != "float" && stream != "int8") root["stream"].fail("is neither 'float' nor 'int8'");
  network.integer_stream = stream == "int8";
  const Field own = root["network"];
  own.members({"classes", "parts"});
  network.classes = own["classes"].integer(1, kMaxExtent);
  read_parts(own["parts"], version, network);
  plan.budget_input = read_gate(root["gate"], network);
  network.gate.multiplier = static_cast<float>(read_operating_points(root["operating_points"], network.gate.kind != GateKind::none).multiplier);
  read_texts(root, network);
  plan.gated_channels = check_shapes(network);
  return plan;
}

}  // namespace fracskip
