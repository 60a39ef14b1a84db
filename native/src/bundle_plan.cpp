#include "bundle_plan.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bundle.hpp"
#include "json.hpp"

namespace fracskip {
namespace {

constexpr int kMaxExtent = 65535;  // channels, kernels, strides, paddings, classes, widths
constexpr std::size_t kMaxBlocks = 4096;
constexpr std::size_t kMaxExecutions = std::size_t{1} << 18;  // convolutions times options
constexpr int kMinBits = 2, kMaxBits = 16;

// A JSON value and the way to it, for messages.
class Field {
 public:
  Field(const Json& json, std::string where) : json_(&json), where_(std::move(where)) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw BundleError("plan: " + (where_.empty() ? "" : where_ + " ") + what);
  }

  // An object with these members, and perhaps those.
  void members(std::initializer_list<const char*> needed,
               std::initializer_list<const char*> optional = {}) const {
    const Json::Object* object = json_->object();
    if (!object) fail("must be an object");
    for (const char* key : needed) {
      if (!json_->find(key)) fail(std::string("lacks '") + key + "'");
    }
    for (const auto& member : *object) {
      const auto is_member = [&](const char* key) { return member.first == key; };
      if (std::none_of(needed.begin(), needed.end(), is_member) &&
          std::none_of(optional.begin(), optional.end(), is_member)) {
        fail("has an unknown member " + quoted(member.first));
      }
    }
  }

  bool has(const char* key) const { return json_->find(key) != nullptr; }

  Field operator[](const char* key) const {
    const Json* found = json_->find(key);
    if (!found) fail(std::string("lacks '") + key + "'");
    return Field(*found, where_.empty() ? key : where_ + "." + key);
  }

  std::vector<Field> items() const {
    const Json::Array* array = json_->array();
    if (!array) fail("must be a list");
    std::vector<Field> out;
    out.reserve(array->size());
    for (std::size_t i = 0; i < array->size(); ++i) {
      out.emplace_back((*array)[i], where_ + "[" + std::to_string(i) + "]");
    }
    return out;
  }

  bool is_null() const { return json_->is_null(); }

  bool flag() const {
    const bool* found = json_->boolean();
    if (!found) fail("must be true or false");
    return *found;
  }

  const std::string& text() const {
    const std::string* found = json_->string();
    if (!found) fail("must be a string");
    return *found;
  }

  double number() const {
    const auto found = json_->number();
    if (!found) fail("must be a number");
    return *found;
  }

  int integer(int low, int high) const {
    const auto found = json_->integer();
    if (!found || *found < low || *found > high) {
      fail("must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return static_cast<int>(*found);
  }

  std::pair<int, int> pair(int low, int high) const {
    const std::vector<Field> both = items();
    if (both.size() != 2) fail("must be two integers");
    return {both[0].integer(low, high), both[1].integer(low, high)};
  }

 private:
  const Json* json_;
  std::string where_;
};

int read_option(const Field& field) {
  const std::string& label = field.text();
  if (label == "skip") return kSkipBits;
  if (label == "full") return kFullBits;
  for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
    if (label == std::to_string(bits)) return bits;
  }
  field.fail("is the unknown option " + quoted(label));
}

std::vector<int> read_options(const Field& field) {
  std::vector<int> bits;
  for (const Field& item : field.items()) {
    bits.push_back(read_option(item));
    if (bits.size() > 1 && bits[bits.size() - 2] >= bits.back()) field.fail("must ascend");
  }
  if (bits.empty()) field.fail("must not be empty");
  if (bits == std::vector<int>{kSkipBits}) field.fail("must not be 'skip' alone");
  return bits;
}

Window read_window(const Field& field) {
  Window window;
  std::tie(window.kernel_h, window.kernel_w) = field["kernel"].pair(1, kMaxExtent);
  std::tie(window.stride_h, window.stride_w) = field["stride"].pair(1, kMaxExtent);
  std::tie(window.pad_h, window.pad_w) = field["padding"].pair(0, kMaxExtent);
  return window;
}

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

std::vector<float> read_floats(const Field& field, std::size_t count, bool positive) {
  std::vector<float> out;
  for (const Field& item : field.items()) {
    const auto value = static_cast<float>(item.number());
    if (!std::isfinite(value)) item.fail("is too large");
    // Pixels are multiplied with the reciprocal.
    if (positive && !(value > 0.f && std::isfinite(1.f / value))) item.fail("must be above zero");
    out.push_back(value);
  }
  if (out.size() != count) field.fail("must have one value for each channel");
  return out;
}

void read_image(const Field& field, Network& network) {
  field.members({"size", "channels", "mean", "std"});
  std::tie(network.height, network.width) = field["size"].pair(1, kMaxExtent);
  network.channels = field["channels"].integer(1, kMaxExtent);
  const auto channels = static_cast<std::size_t>(network.channels);
  network.mean = read_floats(field["mean"], channels, false);
  network.std = read_floats(field["std"], channels, true);
}

void read_gate(const Field& field, BundlePlan& plan) {
  Gate& gate = plan.network.gate;
  const bool is_static = plan.network.option_bits.size() == 1;
  if (is_static != field.is_null()) {
    field.fail("must be null if and only if the network has one option");
  }
  if (is_static) return;  // gated blocks have the one option, with nobody to choose it
  field.members({"kind", "width", "budget_input"}, {"block_bias", "curve", "cascade", "output", "lean"});
  const std::string& kind = field["kind"].text();
  if (kind != "recurrent" && kind != "feedforward") field["kind"].fail("is unknown");
  gate.kind = kind == "recurrent" ? GateKind::recurrent : GateKind::feedforward;
  gate.width = field["width"].integer(1, kMaxExtent);
  plan.budget_input = field["budget_input"].flag();
  // What leans cost is for those who turn budgets into leans; here it only has to be sound.
  double cheapest = 1.0, dearest = 0.0;  // of the curve
  if (field.has("curve")) {
    double cost = 0.0, lean = -std::numeric_limits<double>::infinity();
    const std::vector<Field> points = field["curve"].items();
    if (points.size() == 1) field["curve"].fail("must have two points at least, or none");
    for (const Field& point : points) {
      const std::vector<Field> both = point.items();
      if (both.size() != 2) point.fail("must be a cost and a lean");
      if (!(both[0].number() > cost && both[0].number() <= 1.0 && both[1].number() > lean)) point.fail("must ascend");
      cost = both[0].number();
      lean = both[1].number();
      cheapest = std::min(cheapest, cost);
      dearest = cost;
    }
  }
  // Likewise which looks meet which budget.
  if (field.has("cascade")) {
    double budget = 0.0;
    const std::vector<Field> points = field["cascade"].items();
    if (points.size() == 1 || (!points.empty() && dearest == 0.0)) {
      field["cascade"].fail("must have two points at least and a curve, or none");
    }
    for (const Field& point : points) {
      const std::vector<Field> row = point.items();
      if (row.size() != 4) point.fail("must be a budget, those of two looks and a probability");
      if (!(row[0].number() > budget && row[0].number() <= 1.0)) point.fail("must ascend");
      if (!(row[1].number() >= cheapest && row[1].number() <= row[2].number() && row[2].number() <= dearest)) {
        point.fail("must look at costs on the curve, the dearer one second");
      }
      if (!(row[3].number() >= 0.0 && row[3].number() <= 1.0)) point.fail("must have a probability in [0, 1]");
      if (budget == 0.0) plan.smallest_budget = row[0].number();
      plan.largest_budget = budget = row[0].number();
    }
  }
  if (field.has("output")) {
    const std::string& output = field["output"].text();
    if (output != "logit" && output != "harm") field["output"].fail("is unknown");
    gate.harm = output == "harm";
  }
  if (field.has("lean")) gate.lean = static_cast<float>(field["lean"].number());
  if (gate.lean != 0.f && !gate.harm) field["lean"].fail("is for output 'harm': logits have theirs in the last bias");
  // How it was trained; whether the bundle has such biases, its tensors say.
  if (field.has("block_bias") && field["block_bias"].flag() &&
      gate.kind == GateKind::feedforward) {
    field.fail("has block_bias, which is for 'recurrent'");
  }
}

void read_texts(const Field& root, const BundlePlan& plan) {
  const Network& network = plan.network;
  if (root["name"].text().empty()) root["name"].fail("must not be empty");
  root["source"].text();
  root["data_name"].text();
  const std::vector<Field> names = root["class_names"].items();
  for (const Field& name : names) name.text();
  if (names.size() != static_cast<std::size_t>(network.classes)) {
    root["class_names"].fail("must have one name for each class");
  }
  if (!root["target"].is_null()) {
    const double target = root["target"].number();
    if (!(target > 0.0 && target <= 1.0)) root["target"].fail("must be in (0, 1]");
  }
  if (plan.largest_budget > 0.0) {
    const double target = root["target"].is_null() ? 0.0 : root["target"].number();
    if (target < plan.smallest_budget || target > plan.largest_budget) root["target"].fail("must be among the cascade's budgets");
  }
  // What decisions cost is for those who price them; here it only has to be there.
  root["cost"].members({"stem_macs", "blocks", "head_macs"});
}

void check_schema(const Field& root) {
  const bool known = root.has("schema") && root.has("version") &&
                     root["schema"].text() == "fracskip.bundle" &&
                     root["version"].integer(0, kMaxExtent) == 1;
  if (!known) root.fail("is not of schema 'fracskip.bundle', version 1");
}

}  // namespace

BundlePlan read_plan(std::string_view text) {
  Json json;
  try {
    json = parse_json(text);
  } catch (const JsonError& error) {
    throw BundleError(std::string("plan: ") + error.what());
  }
  const Field root(json, "");
  check_schema(root);
  root.members({"schema", "version", "name", "source", "data_name", "class_names", "image",
                "options", "stream", "target", "cost", "network", "gate"});
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
  read_gate(root["gate"], plan);
  read_texts(root, plan);
  check_shapes(network);
  return plan;
}

}  // namespace fracskip
