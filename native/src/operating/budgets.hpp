// What a budget stands for: which members answer, by which multipliers and thresholds (docs/bundle.md, "Cascade").
// `fracskip.operating` says the same in Python, for whatever executes a network there.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plan/manifest.hpp"

namespace fracskip {

// How a member answers, the same for all images.
struct Setting {
  std::size_t network = 0;
  std::optional<float> multiplier;  // of cost; none: the network's own
  std::optional<float> budget;      // for gates that take one
  float temperature = 1.f;
};

struct Operation {
  std::vector<Setting> members;
  std::vector<float> thresholds;  // one fewer
  Score score = Score::probability;
  bool averaged = false;
};

// Of a member that is a network without a cascade of its own. Throws std::invalid_argument where a budget is needed or is
// none that it meets.
Setting setting_at(const NetworkManifest& network, std::optional<double> budget);

// Of a network by itself; likewise.
Operation operation_at(const NetworkManifest& network, std::optional<double> budget);

// The smallest and the largest budget that a caller may name, if it may name one.
std::optional<std::pair<double, double>> budgets_of(const NetworkManifest& network);

// A number for a message, in four digits.
std::string short_number(double value);

}  // namespace fracskip
