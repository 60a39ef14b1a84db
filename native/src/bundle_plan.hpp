// Reads a bundle's plan: the network's shapes, before its tensors.
#pragma once

#include <string_view>

#include "network.hpp"

namespace fracskip {

struct BundlePlan {
  Network network;  // complete but for what tensors hold
  int stages = 1;
  bool budget_input = false;
  double smallest_budget = 0.0, largest_budget = 0.0;  // of a cascade; 0: there is none
};

// Checks everything that needs no tensor, shapes included. Throws BundleError.
BundlePlan read_plan(std::string_view text);

// Follows one image through the network: every convolution gets the channels it takes, sums of
// products fit 32 bits, activations are within the limits. Throws BundleError.
void check_shapes(const Network& network);

}  // namespace fracskip
