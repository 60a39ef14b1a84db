// A cascade's operating points that pay, and which one a budget gets; see `fracskip.operating.cascade`.
#pragma once

#include <cstddef>
#include <vector>

#include "plan/manifest.hpp"

namespace fracskip {

// A chain of a cascade's members, and what validation images say of it.
struct Choice {
  std::vector<std::size_t> chain;
  std::vector<double> thresholds;
  double cost = 0.0;      // mean of an image, in units of the last member's: BitOps, as budgets are
  double accuracy = 0.0;  // a share
};

class Frontier {
 public:
  explicit Frontier(const CascadePoints& points);

  std::size_t size() const { return places_.size(); }
  Choice at(std::size_t index) const { return between(index, index, 0.0); }  // ascending in cost and in accuracy
  // The most accurate whose cost is at most a budget; between two of one chain, in between. Throws std::invalid_argument
  // if none is so cheap.
  Choice within(double budget) const;

 private:
  Choice between(std::size_t first, std::size_t second, double share) const;
  const CascadePoints::Point& point(std::size_t index) const { return points_.points[places_[index]]; }
  bool pays(const CascadePoints::Point& point, double cost) const;

  const CascadePoints& points_;
  std::vector<double> members_;      // what each costs
  std::vector<double> costs_;        // of all points
  std::vector<std::size_t> places_;  // of those that pay
};

}  // namespace fracskip
