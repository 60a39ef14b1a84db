#include "operating/frontier.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "operating/budgets.hpp"

namespace fracskip {
namespace {

constexpr double kTolerance = 1e-3;  // a budget that was printed and typed in again is still met

double mean_cost(const std::vector<std::size_t>& chain, const std::vector<double>& rates, const std::vector<double>& members) {
  double cost = 0.0;
  for (std::size_t k = 0; k < chain.size(); ++k) cost += rates[k] * members[chain[k]];
  return cost;
}

std::vector<double> mixed(const std::vector<double>& low, const std::vector<double>& high, double share) {
  std::vector<double> out;
  for (std::size_t k = 0; k < low.size(); ++k) out.push_back(low[k] + share * (high[k] - low[k]));
  return out;
}

}  // namespace

Frontier::Frontier(const CascadePoints& points) : points_(points) {
  for (const CascadePoints::Member& member : points.members) members_.push_back(member.bitops / points.members.back().bitops);
  for (const CascadePoints::Point& point : points.points) costs_.push_back(mean_cost(point.chain, point.rates, members_));
  std::vector<std::size_t> order(costs_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return costs_[a] != costs_[b] ? costs_[a] < costs_[b] : points.points[a].correct > points.points[b].correct;
  });
  for (const std::size_t index : order) {
    const CascadePoints::Point& next = points.points[index];
    if (next.chain.size() > 1 && !pays(next, costs_[index])) continue;
    if (places_.empty() || next.correct > points.points[places_.back()].correct) places_.push_back(index);
  }
}

// Whether a chain is more accurate than each member that costs no more by itself, by more than the standard error of the
// difference of paired answers.
bool Frontier::pays(const CascadePoints::Point& point, double cost) const {
  for (std::size_t member = 0; member < members_.size(); ++member) {
    if (!(members_[member] <= cost)) continue;
    const double better = point.against[member][0], worse = point.against[member][1], gain = better - worse;
    if (!(gain > std::sqrt(better + worse - gain * gain / points_.images))) return false;
  }
  return true;
}

Choice Frontier::within(double budget) const {
  const auto cost = [&](std::size_t index) { return costs_[places_[index]]; };
  if (!(budget >= cost(0) * (1.0 - kTolerance))) {
    throw std::invalid_argument("budget " + short_number(budget) + " is out of this cascade's reach: give " + short_number(cost(0)) + " at least; from " +
                                short_number(cost(size() - 1)) + " on accuracy does not rise");
  }
  std::size_t here = 0;
  while (here + 1 < size() && cost(here + 1) <= budget) ++here;
  const std::size_t there = here + 1;
  if (there == size() || point(here).chain != point(there).chain) return at(here);
  return between(here, there, std::max(0.0, (budget - cost(here)) / (cost(there) - cost(here))));
}

Choice Frontier::between(std::size_t first, std::size_t second, double share) const {
  const CascadePoints::Point &a = point(first), &b = point(second);
  Choice choice;
  choice.chain = a.chain;
  choice.thresholds = mixed(a.thresholds, b.thresholds, share);
  choice.cost = mean_cost(a.chain, mixed(a.rates, b.rates, share), members_);
  choice.accuracy = (a.correct + share * (b.correct - a.correct)) / points_.images;
  return choice;
}

}  // namespace fracskip
