// Hands out a bundle's tensors by name, checked, and knows at the end which were never asked for.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "io/bundle_field.hpp"
#include "io/bundle_plan.hpp"
#include "plan/network.hpp"
#include "io/safetensors.hpp"

namespace fracskip {

using Extents = std::vector<std::int64_t>;

// Each throws BundleError where a tensor is missing or is not what the plan needs.
class Tensors {
 public:
  explicit Tensors(Safetensors file) : file_(std::move(file)) {}

  bool has(const std::string& name) const { return file_.tensors.count(name) > 0; }
  std::vector<float> floats(const std::string& name, const Extents& shape);  // finite
  std::vector<float> positives(const std::string& name, const Extents& shape);
  std::vector<std::int8_t> integers(const std::string& name, const Extents& shape, int bits);  // of a width's symmetric grid
  Linear linear(const std::string& name, int in, int out);
  void refuse_surplus() const;

 private:
  TensorView take(const std::string& name, TensorType type, const Extents& shape);

  Safetensors file_;
};

// The gate's own; `channels` of what each gated block takes.
void fill_gate(Tensors& tensors, bool budget_input, const std::vector<int>& channels, Network& network);

// All that tensors say of a network.
Network fill_network(BundlePlan plan, Tensors tensors);

}  // namespace fracskip
