#include "io/bundle_field.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

namespace fracskip {
namespace {

constexpr int kMinBits = 2, kMaxBits = 16;

int read_option(const Field& field) {
  const std::string& label = field.text();
  if (label == "skip") return kSkipBits;
  if (label == "full") return kFullBits;
  for (int bits = kMinBits; bits <= kMaxBits; ++bits) {
    if (label == std::to_string(bits)) return bits;
  }
  field.fail("is the unknown option " + quoted(label));
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

// What float32 holds.
double read_multiplier(const Field& field) {
  if (!(std::fabs(field.number()) <= 1e38)) field.fail("must be from -1e38 to 1e38");
  return field.number();
}

}  // namespace

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

int read_executed(const Field& field) {
  const int bits = read_option(field);
  if (bits == kSkipBits) field.fail("must not be 'skip'");
  return bits;
}

Window read_window(const Field& field, int version) {
  Window window;
  std::tie(window.kernel_h, window.kernel_w) = field["kernel"].pair(1, kMaxExtent);
  std::tie(window.stride_h, window.stride_w) = field["stride"].pair(1, kMaxExtent);
  const Field padding = field["padding"];
  if (version == kOldestPlanVersion) {
    std::tie(window.pad_top, window.pad_left) = padding.pair(0, kMaxExtent);
    window.pad_bottom = window.pad_top;
    window.pad_right = window.pad_left;
  } else {
    const auto sides = padding.integers<4>(0, kMaxExtent, "must be four integers: top, left, bottom, right");
    std::tie(window.pad_top, window.pad_left, window.pad_bottom, window.pad_right) = std::tuple_cat(sides);
  }
  return window;
}

void read_image(const Field& field, Network& network) {
  field.members({"size", "channels", "mean", "std"}, {"resize"});
  std::tie(network.height, network.width) = field["size"].pair(1, kMaxExtent);
  // What images are brought to before they come here; the engine takes them as they come.
  if (field.has("resize")) field["resize"].integer(std::min(network.height, network.width), kMaxExtent);
  network.channels = field["channels"].integer(1, kMaxExtent);
  const auto channels = static_cast<std::size_t>(network.channels);
  network.mean = read_floats(field["mean"], channels, false);
  network.std = read_floats(field["std"], channels, true);
}

bool read_gate(const Field& field, Network& network) {
  Gate& gate = network.gate;
  const bool is_static = network.option_bits.size() == 1;
  if (is_static != field.is_null()) {
    field.fail("must be null if and only if the network has one option");
  }
  if (is_static) return false;  // gated blocks have the one option, with nobody to choose it
  field.members({"kind", "width", "budget_input", "output"});
  const std::string& kind = field["kind"].text();
  if (kind != "recurrent" && kind != "feedforward") field["kind"].fail("is unknown");
  gate.kind = kind == "recurrent" ? GateKind::recurrent : GateKind::feedforward;
  gate.width = field["width"].integer(1, kMaxExtent);
  const std::string& output = field["output"].text();
  if (output != "logit" && output != "sensitivity") field["output"].fail("is unknown");
  gate.sensitivity = output == "sensitivity";
  return field["budget_input"].flag();
}

// Curve and cascade are for those who turn budgets into multipliers and members: an engine takes the multiplier alone.
OperatingPoints read_operating_points(const Field& field, bool gated) {
  field.members({"target", "multiplier", "multiplier_curve", "cascade"});
  OperatingPoints points;
  const Field target = field["target"];
  if (!target.is_null()) points.target = target.number();
  if (points.target && !(*points.target > 0.0 && *points.target <= 1.0)) target.fail("must be in (0, 1]");
  points.multiplier = read_multiplier(field["multiplier"]);
  double cost = 0.0, multiplier = std::numeric_limits<double>::infinity();
  for (const Field& point : field["multiplier_curve"].items()) {
    const std::vector<Field> both = point.items();
    if (both.size() != 2) point.fail("must be a cost and a multiplier");
    const double dearer = both[0].number(), smaller = read_multiplier(both[1]);
    if (!(dearer > cost && dearer <= 1.0 && smaller < multiplier)) {
      point.fail("must cost more than the one before, with a smaller multiplier");
    }
    points.curve.emplace_back(dearer, smaller);
    cost = dearer;
    multiplier = smaller;
  }
  if (points.curve.size() == 1) field["multiplier_curve"].fail("must have two points at least, or none");
  const std::vector<Field> rows = field["cascade"].items();
  if (rows.size() == 1 || (!rows.empty() && points.curve.empty())) {
    field["cascade"].fail("must have two rows at least and a multiplier curve, or none");
  }
  if (!gated && !points.curve.empty()) field.fail("must have no multiplier curve without a gate");
  double budget = 0.0;
  for (const Field& line : rows) {
    const std::vector<Field> four = line.items();
    if (four.size() != 4) line.fail("must be a budget, those of two members and a threshold");
    const OperatingPoints::Row row = {four[0].number(), four[1].number(), four[2].number(), four[3].number()};
    if (!(row.budget > budget && row.budget <= 1.0)) line.fail("must ascend");
    if (!(row.first >= points.curve.front().first && row.first <= row.second && row.second <= cost)) {
      line.fail("must have members on the multiplier curve, the dearer one second");
    }
    if (!(row.threshold >= 0.0 && row.threshold <= 1.0)) line.fail("must have a threshold in [0, 1]");
    budget = row.budget;
    points.cascade.push_back(row);
  }
  if (!rows.empty() && !(points.target && *points.target >= points.cascade.front().budget && *points.target <= budget)) {
    field["target"].fail("must be among the cascade's budgets");
  }
  return points;
}

void read_texts(const Field& root, const Network& network) {
  if (root["name"].text().empty()) root["name"].fail("must not be empty");
  root["source"].text();
  root["data_name"].text();
  const std::vector<Field> names = root["class_names"].items();
  for (const Field& name : names) name.text();
  if (names.size() != static_cast<std::size_t>(network.classes)) {
    root["class_names"].fail("must have one name for each class");
  }
  // What decisions cost is for those who price them; here it only has to be there.
  const Field cost = root["cost"];
  cost.members({"stem_macs", "blocks", "head_macs", "stem_bits", "head_bits"});
  for (const char* bits : {"stem_bits", "head_bits"}) cost[bits].integer(1, kFullBits);
}

}  // namespace fracskip
