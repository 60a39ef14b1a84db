// Reads a cascade's plan (docs/bundle.md): networks' plans, and how the networks are operated together.
#pragma once

#include <optional>
#include <vector>

#include "io/bundle_field.hpp"
#include "io/bundle_plan.hpp"

namespace fracskip {

struct CascadePlan {
  std::vector<BundlePlan> networks;
  std::vector<std::optional<std::size_t>> weights_of;  // whose tensors a network shares, where it has none of its own
};

bool is_cascade(const Field& root);

// Throws BundleError. How a cascade is operated is for those who do: it only has to be there.
CascadePlan read_cascade(const Field& root);

}  // namespace fracskip
