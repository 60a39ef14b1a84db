// How a bundle is operated: what it may be asked for, and what then answers.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "operating/budgets.hpp"
#include "operating/frontier.hpp"
#include "plan/manifest.hpp"

namespace fracskip {

// What is known of it; none where the bundle does not say.
struct OperatingPoint {
  std::optional<double> cost;      // mean of an image, in the unit of budgets
  std::optional<double> accuracy;  // a share
};

// Of a manifest that outlives it. Immutable.
class Operator {
 public:
  // Throws BundleError if a member can't answer at its own budget.
  explicit Operator(const Manifest& manifest);

  std::optional<std::pair<double, double>> budgets() const;
  // For a budget, or what a network was trained for, or all that a cascade can. Throws std::invalid_argument.
  Operation at(std::optional<double> budget) const;

  std::size_t points() const { return frontier_ ? frontier_->size() : points_.size(); }
  OperatingPoint point(std::size_t index) const;
  Operation at_point(std::size_t index) const;

 private:
  struct Known {
    OperatingPoint point;
    std::optional<double> budget;  // that it is asked for
  };

  void list_points(const NetworkManifest& network);
  Operation chain(const Choice& choice) const;

  const Manifest& manifest_;
  std::vector<Known> points_;         // of a network
  std::optional<Frontier> frontier_;  // of a cascade
  std::vector<Setting> members_;
};

}  // namespace fracskip
