#include "io/cascade.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "plan/score.hpp"

namespace fracskip {
namespace {

constexpr const char* kSchema = "fracskip.cascade";
constexpr int kCascadeVersion = 1;

// Lists of objects. Numbers are finite: JSON has no others.
void read_objects(const Field& field) {
  for (const Field& item : field.items()) {
    if (!item.is_object()) item.fail("must be an object");
  }
}

void read_operating_data(const Field& root) {
  if (!score_named(root["score"].text())) root["score"].fail("is unknown");
  root["averaged"].flag();
  root["images"].integer(0, std::numeric_limits<int>::max());
  read_objects(root["members"]);
  read_objects(root["points"]);
}

void check_images(const Field& field, const std::vector<BundlePlan>& plans) {
  const auto area = [](const BundlePlan& plan) { return static_cast<std::int64_t>(plan.network.height) * plan.network.width; };
  const Network& largest =
      std::max_element(plans.begin(), plans.end(), [&](const auto& a, const auto& b) { return area(a) < area(b); })->network;
  for (const BundlePlan& plan : plans) {
    const Network& network = plan.network;
    if (network.channels != largest.channels) field.fail("must take images of the same channels");
    if (network.height > largest.height || network.width > largest.width) {
      field.fail("must have one of the largest image, in height and in width");
    }
    const bool same = network.height == largest.height && network.width == largest.width;
    if (!same && std::max(largest.height, largest.width) > kMaxResized) {
      field.fail("must take images of up to " + std::to_string(kMaxResized) + " pixels on a side, where sizes differ");
    }
  }
}

std::vector<std::string> class_names(const Field& network) {
  std::vector<std::string> names;
  for (const Field& name : network["class_names"].items()) names.push_back(name.text());
  return names;
}

}  // namespace

bool is_cascade(const Field& root) {
  return root.is_object() && root.has("schema") && root["schema"].text() == kSchema;
}

CascadePlan read_cascade(const Field& root) {
  if (!root.has("version") || root["version"].integer(0, kMaxExtent) != kCascadeVersion) {
    throw BundleError("this is a cascade of another version; this fracskip reads '" + std::string(kSchema) + "' version " +
                      std::to_string(kCascadeVersion) + ": export it again");
  }
  root.members({"schema", "version", "networks", "weights_of", "members", "score", "averaged", "images", "points"});
  const std::vector<Field> networks = root["networks"].items(), sharing = root["weights_of"].items();
  if (networks.empty() || networks.size() > kMaxNetworks) root["networks"].fail("must be 1 to " + std::to_string(kMaxNetworks));
  if (sharing.size() != networks.size()) root["weights_of"].fail("must have one entry for each network");
  CascadePlan plan;
  for (std::size_t i = 0; i < networks.size(); ++i) {
    plan.networks.push_back(read_plan(networks[i]));
    networks[i]["version"].integer(kPlanVersion, kPlanVersion);
    if (class_names(networks[i]) != class_names(networks[0])) networks[i]["class_names"].fail("must be those of the first network");
    plan.weights_of.emplace_back();
    if (sharing[i].is_null()) continue;
    if (i == 0) sharing[i].fail("must be null: there is no network before");
    plan.weights_of.back() = static_cast<std::size_t>(sharing[i].integer(0, static_cast<int>(i) - 1));
  }
  check_images(root["networks"], plan.networks);
  read_operating_data(root);
  return plan;
}

}  // namespace fracskip
