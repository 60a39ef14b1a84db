// Reads a bundle's plan: the network's shapes, before its tensors.
#pragma once

#include "io/bundle_field.hpp"
#include "plan/graph.hpp"
#include "plan/network.hpp"

namespace fracskip {

// Networks that are complete but for what tensors hold.
struct BundlePlan {
  Network network;
  int stages = 1;
  GatePlan gate;
};
struct BundleGraph {
  GraphNetwork network;
  GatePlan gate;
  std::vector<int> gated_channels;  // of what each gated part takes
};

// Check everything that needs no tensor, shapes included. Throw BundleError.
BundlePlan read_plan(const Field& root);
BundleGraph read_graph(const Field& root);

// Follow one image through the network: every operation gets what it takes, sums of products fit 32 bits,
// activations are within the limits. Throw BundleError.
void check_shapes(const Network& network);
std::vector<int> check_shapes(const GraphNetwork& network);  // gives the gated parts' channels

}  // namespace fracskip
