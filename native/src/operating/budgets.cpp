#include "operating/budgets.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

namespace fracskip {
namespace {

constexpr double kTolerance = 1e-3;  // ends that were printed and typed in again are still the ends

float checked(double budget) {
  const auto value = static_cast<float>(budget);
  if (!(value > 0.f && value <= 1.f)) throw std::invalid_argument("budget " + short_number(budget) + " is out of range: give a share in (0, 1]");
  return value;
}

void check_reach(float budget, double low, double high) {
  if (budget >= low * (1.0 - kTolerance) && budget <= high * (1.0 + kTolerance)) return;
  throw std::invalid_argument("budget " + short_number(budget) + " is out of this network's reach: give a share from " + short_number(low) + " to " +
                              short_number(high));
}

// The value at `x` on the line through points of ascending x; beyond its ends, that of the end.
template <typename Points, typename X, typename Y>
double interpolated(double x, const Points& points, X x_of, Y y_of) {
  const auto after = std::upper_bound(points.begin(), points.end(), x, [&](double value, const auto& point) { return value < x_of(point); });
  if (after == points.begin()) return y_of(points.front());
  const auto& before = *(after - 1);
  if (after == points.end() || x == x_of(before)) return y_of(before);
  const double slope = (y_of(*after) - y_of(before)) / (x_of(*after) - x_of(before));
  return slope * (x - x_of(before)) + y_of(before);
}

// Linear in log cost between the curve's points.
float multiplier_at(const OperatingPoints& points, float budget) {
  check_reach(budget, points.curve.front().first, points.curve.back().first);
  const auto cost = [](const auto& point) { return std::log(point.first); };
  const auto multiplier = [](const auto& point) { return point.second; };
  return static_cast<float>(interpolated(std::log(static_cast<double>(budget)), points.curve, cost, multiplier));
}

}  // namespace

std::string short_number(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value, std::chars_format::general, 4).ptr};
}

Setting setting_at(const NetworkManifest& network, std::optional<double> budget) {
  const OperatingPoints& points = network.points;
  Setting setting;
  if (budget && !points.curve.empty()) setting.multiplier = multiplier_at(points, checked(*budget));
  if (!network.budget_input) return setting;
  const std::optional<double> given = budget ? budget : points.target;
  if (!given) throw std::invalid_argument("this network needs a budget: a computation share in (0, 1]");
  setting.budget = checked(*given);
  return setting;
}

Operation operation_at(const NetworkManifest& network, std::optional<double> budget) {
  const OperatingPoints& points = network.points;
  if (budget && !budgets_of(network)) {
    throw std::invalid_argument("this network was trained for one budget and takes none: leave budget out");
  }
  if (points.cascade.empty()) return {{setting_at(network, budget)}, {}, Score::probability, false};
  const float asked = checked(budget ? *budget : *points.target);
  check_reach(asked, points.cascade.front().budget, points.cascade.back().budget);
  const auto known = [](const OperatingPoints::Row& row) { return std::log(row.budget); };
  const auto at = [&](auto value) { return interpolated(std::log(static_cast<double>(asked)), points.cascade, known, value); };
  // Rounded, as a caller's would be.
  const auto first = static_cast<float>(std::exp(at([](const auto& row) { return std::log(row.first); })));
  const auto second = static_cast<float>(std::exp(at([](const auto& row) { return std::log(row.second); })));
  const auto threshold = static_cast<float>(at([](const auto& row) { return row.threshold; }));
  return {{setting_at(network, first), setting_at(network, second)}, {threshold}, Score::probability, false};
}

std::optional<std::pair<double, double>> budgets_of(const NetworkManifest& network) {
  const OperatingPoints& points = network.points;
  if (!points.cascade.empty()) return {{points.cascade.front().budget, points.cascade.back().budget}};
  if (!points.curve.empty()) return {{points.curve.front().first, points.curve.back().first}};
  if (network.budget_input) return {{0.0, 1.0}};
  return std::nullopt;
}

}  // namespace fracskip
