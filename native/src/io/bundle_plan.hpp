// Reads a bundle's plan: the network's shapes, before its tensors.
#pragma once

#include <vector>

#include "io/bundle_field.hpp"
#include "plan/network.hpp"

namespace fracskip {

// A network that is complete but for what tensors hold.
struct BundlePlan {
  Network network;
  bool budget_input = false;  // of the gate
  std::vector<int> gated_channels;  // of what each gated part takes
};

// Checks everything that needs no tensor, shapes included. Throws BundleError.
BundlePlan read_plan(const Field& root);

// Follows one image through the network: every operation gets what it takes, sums of products fit 32 bits,
// activations are within the limits. Gives the gated parts' channels. Throws BundleError.
std::vector<int> check_shapes(const Network& network);

}  // namespace fracskip
