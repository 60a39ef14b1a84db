#include "operating/operator.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "io/bundle.hpp"
#include "plan/network.hpp"

namespace fracskip {

Operator::Operator(const Manifest& manifest) : manifest_(manifest) {
  if (!manifest.cascade) {
    list_points(manifest.networks.front());
    return;
  }
  frontier_.emplace(*manifest.cascade);
  for (const CascadePoints::Member& member : manifest.cascade->members) {
    try {
      const NetworkManifest& network = manifest.networks[member.network];
      if (member.budget) operation_at(network, member.budget);  // which is also in reach of a cascade of its own
      members_.push_back(setting_at(network, member.budget));
    } catch (const std::invalid_argument& error) {
      throw BundleError("plan: members[" + std::to_string(members_.size()) + "]: " + error.what());
    }
    members_.back().network = member.network;
    members_.back().temperature = static_cast<float>(member.temperature);
  }
}

void Operator::list_points(const NetworkManifest& network) {
  const OperatingPoints& points = network.points;
  for (const OperatingPoints::Row& row : points.cascade) points_.push_back({{row.budget, {}}, row.budget});
  if (!points.cascade.empty()) return;
  for (const auto& [cost, multiplier] : points.curve) points_.push_back({{cost, {}}, cost});
  if (!points.curve.empty()) return;
  if (network.budget_input && !points.target) return;  // only what a caller names
  // The one that it was made for.
  std::optional<double> cost = points.target;
  if (!network.gated) {
    const double share = network.option_bits.front() / static_cast<double>(kFullBits);
    cost = network.blocks.empty() ? 1.0 : share * share;
  }
  points_.push_back({{cost, {}}, {}});
}

std::optional<std::pair<double, double>> Operator::budgets() const {
  if (!frontier_) return budgets_of(manifest_.networks.front());
  return {{frontier_->at(0).cost, std::min(1.0, frontier_->at(frontier_->size() - 1).cost)}};
}

Operation Operator::at(std::optional<double> budget) const {
  if (!frontier_) return operation_at(manifest_.networks.front(), budget);
  if (budget && !(*budget > 0.0 && *budget <= 1.0)) throw std::invalid_argument("budget " + short_number(*budget) + " is out of range: give a share in (0, 1]");
  return chain(frontier_->within(budget ? *budget : 1.0));
}

OperatingPoint Operator::point(std::size_t index) const {
  if (!frontier_) return points_[index].point;
  const Choice choice = frontier_->at(index);
  return {choice.cost, choice.accuracy};
}

Operation Operator::at_point(std::size_t index) const {
  return frontier_ ? chain(frontier_->at(index)) : operation_at(manifest_.networks.front(), points_[index].budget);
}

Operation Operator::chain(const Choice& choice) const {
  Operation operation;
  for (const std::size_t member : choice.chain) operation.members.push_back(members_[member]);
  for (const double threshold : choice.thresholds) operation.thresholds.push_back(static_cast<float>(threshold));
  operation.score = manifest_.cascade->score;
  operation.averaged = manifest_.cascade->averaged;
  return operation;
}

}  // namespace fracskip
