#include "io/manifest.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "io/cascade.hpp"

namespace fracskip {
namespace {

constexpr std::int64_t kMaxMacs = std::int64_t{1} << 53;
constexpr std::size_t kMaxMembers = 16, kMaxPoints = 4096, kMaxChain = 4;
constexpr int kMaxCount = std::numeric_limits<int>::max();

// What C's strings hold.
std::string read_name(const Field& field) {
  if (field.text().find('\0') != std::string::npos) field.fail("holds a null character");
  return field.text();
}

// -- what images cost --

double read_macs(const Field& field) { return static_cast<double>(field.whole(0, kMaxMacs)); }

// MACs at 32 bits of equal BitOps.
double at_full_width(double macs, const Field& bits) {
  const double share = bits.integer(1, kFullBits) / static_cast<double>(kFullBits);
  return macs * (share * share);
}

Profile read_profile(const Field& field, const std::vector<std::string>& gated) {
  const double stem = read_macs(field["stem_macs"]), head = read_macs(field["head_macs"]);
  const double fixed_head = at_full_width(head, field["head_bits"]);
  Profile profile;
  double blocks = 0.0, fixed = 0.0, repeated = 0.0, gates = 0.0;
  std::vector<std::string> names;
  for (const Field& block : field["blocks"].items()) {
    block.members({"name", "branch_macs", "shortcut_macs", "gate_macs", "gated", "fixed_bits"});
    const double branch = read_macs(block["branch_macs"]), shortcut = read_macs(block["shortcut_macs"]);
    const bool is_gated = block["gated"].flag();
    if (is_gated) {
      names.push_back(block["name"].text());
      profile.branches.push_back(branch);
    }
    const double own = at_full_width(shortcut + (is_gated ? 0.0 : branch), block["fixed_bits"]);
    blocks += branch + shortcut;
    fixed += own;
    if (!names.empty()) repeated += own;  // a network that follows itself goes on from its first gated block
    gates += read_macs(block["gate_macs"]);
  }
  if (names != gated) field.fail("does not list the network's gated parts");
  profile.backbone = stem + blocks + head;
  if (!(profile.backbone > 0.0)) field.fail("counts no MACs");
  profile.fixed = at_full_width(stem, field["stem_bits"]) + fixed_head + fixed + gates;
  profile.repeated = repeated + fixed_head + gates;
  return profile;
}

NetworkManifest read_one(const Field& root, const Network& network) {
  NetworkManifest found;
  found.name = read_name(root["name"]);
  found.height = network.height;
  found.width = network.width;
  found.option_bits = network.option_bits;
  for (const int bits : network.option_bits) found.options.push_back(option_label(bits));
  for (const Part& part : network.parts) {
    if (part.gated) found.blocks.push_back(part.name);
  }
  for (const std::string& block : found.blocks) {
    if (block.find('\0') != std::string::npos) root["network"].fail("has a part whose name holds a null character");
  }
  found.gated = network.gate.kind != GateKind::none;
  found.budget_input = !network.gate.budget_weight.empty();
  found.points = read_operating_points(root["operating_points"], found.gated);
  found.profile = read_profile(root["cost"], found.blocks);
  return found;
}

// -- cascades --

double read_share(const Field& field, double most = 1.0) {
  if (!(field.number() >= 0.0 && field.number() <= most)) field.fail("must be from 0 to 1");
  return field.number();
}

double read_positive(const Field& field) {
  if (!(field.number() > 0.0)) field.fail("must be above zero");
  return field.number();
}

CascadePoints::Member read_member(const Field& field, std::size_t networks) {
  // Shares and quantiles are for those who measure times and follow scores.
  field.members({"network", "budget", "temperature", "bitops", "correct", "shares", "quantiles"});
  CascadePoints::Member member;
  member.network = static_cast<std::size_t>(field["network"].integer(0, static_cast<int>(networks) - 1));
  const Field budget = field["budget"];
  if (!budget.is_null()) {
    read_positive(budget);
    member.budget = read_share(budget);
  }
  member.temperature = read_positive(field["temperature"]);
  // Engines divide by it in float32.
  const auto divisor = static_cast<float>(member.temperature);
  if (!(divisor > 0.f && std::isfinite(divisor))) field["temperature"].fail("must be a float32 above zero");
  member.bitops = field["bitops"].number();
  // Quotients of two are finite.
  if (!(member.bitops >= 1e-30 && member.bitops <= 1e30)) field["bitops"].fail("must be from 1e-30 to 1e30");
  return member;
}

CascadePoints::Point read_point(const Field& field, const CascadePoints& points) {
  field.members({"chain", "thresholds", "rates", "quantiles", "correct", "against"});
  CascadePoints::Point point;
  const auto members = static_cast<int>(points.members.size());
  for (const Field& item : field["chain"].items()) {
    const auto member = static_cast<std::size_t>(item.integer(0, members - 1));
    if (!point.chain.empty() && member <= point.chain.back()) item.fail("must ascend");
    point.chain.push_back(member);
  }
  if (point.chain.empty() || point.chain.size() > kMaxChain) field["chain"].fail("must have 1 to " + std::to_string(kMaxChain) + " members");
  for (const Field& item : field["thresholds"].items()) point.thresholds.push_back(read_share(item, 1.0001));
  if (point.thresholds.size() + 1 != point.chain.size()) field["thresholds"].fail("must be one fewer than the chain has members");
  for (const Field& item : field["rates"].items()) {
    point.rates.push_back(read_share(item));
    const double before = point.rates.size() == 1 ? 1.0 : point.rates[point.rates.size() - 2];
    if (point.rates.size() == 1 ? point.rates.back() != before : point.rates.back() > before) item.fail("must begin with 1 and descend");
  }
  if (point.rates.size() != point.chain.size()) field["rates"].fail("must be one for each member of the chain");
  point.correct = field["correct"].integer(0, points.images);
  for (const Field& item : field["against"].items()) {
    point.against.push_back(item.integers<2>(0, points.images, "must be how often it is better and how often worse"));
    if (point.against.back()[0] > points.images - point.against.back()[1]) item.fail("counts more images than there are");
  }
  if (point.against.size() != points.members.size()) field["against"].fail("must have one entry for each member");
  return point;
}

CascadePoints read_cascade_points(const Field& root, std::size_t networks) {
  CascadePoints points;
  points.score = *score_named(root["score"].text());
  points.averaged = root["averaged"].flag();
  points.images = root["images"].integer(1, kMaxCount);
  const std::vector<Field> members = root["members"].items(), rows = root["points"].items();
  if (members.size() < 2 || members.size() > kMaxMembers) root["members"].fail("must be 2 to " + std::to_string(kMaxMembers));
  std::vector<bool> used(networks);
  for (const Field& item : members) {
    points.members.push_back(read_member(item, networks));
    used[points.members.back().network] = true;
    item["correct"].integer(0, points.images);
  }
  if (std::find(used.begin(), used.end(), false) != used.end()) root["members"].fail("must name every network");
  if (rows.size() > kMaxPoints) root["points"].fail("has more than " + std::to_string(kMaxPoints) + " points");
  std::vector<bool> alone(members.size());
  for (const Field& item : rows) {
    points.points.push_back(read_point(item, points));
    if (points.points.back().chain.size() == 1) alone[points.points.back().chain[0]] = true;
  }
  if (std::find(alone.begin(), alone.end(), false) != alone.end()) root["points"].fail("must have each member alone");
  return points;
}

}  // namespace

Manifest read_manifest(const Field& root, const std::vector<Network>& networks) {
  const bool several = is_cascade(root);
  const std::vector<Field> plans = several ? root["networks"].items() : std::vector<Field>{root};
  Manifest manifest;
  for (std::size_t k = 0; k < plans.size(); ++k) {
    manifest.networks.push_back(read_one(plans[k], networks[k]));
    const Network& network = networks[k];
    if (network.height <= manifest.height && network.width <= manifest.width) continue;  // the first of the largest
    manifest.height = network.height;
    manifest.width = network.width;
    manifest.channels = network.channels;
    const Field image = plans[k]["image"];
    if (image.has("resize")) manifest.resize = image["resize"].integer(0, kMaxExtent);
  }
  for (const Field& name : plans[0]["class_names"].items()) manifest.class_names.push_back(read_name(name));
  if (several) manifest.cascade = read_cascade_points(root, networks.size());
  return manifest;
}

}  // namespace fracskip
