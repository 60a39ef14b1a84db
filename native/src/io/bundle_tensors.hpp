// Hands out a network's tensors by name, checked, and what was handed out before to those that share it.
#pragma once

#include <cstdint>
#include <map>
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
  // Those of a file whose names begin with `prefix`, taken out of it; a weight that is not there is that of `lender`,
  // if it gives one, under the same name behind its own prefix.
  Tensors(Safetensors& file, std::string prefix, const Tensors* lender)
      : file_(file), prefix_(std::move(prefix)), lender_(lender) {}

  bool has(const std::string& name) const { return file_.tensors.count(prefix_ + name) > 0 || lent(name); }
  std::vector<float> floats(const std::string& name, const Extents& shape);  // finite
  std::vector<float> positives(const std::string& name, const Extents& shape);
  std::vector<std::int8_t> integers(const std::string& name, const Extents& shape, int bits);  // of a width's symmetric grid
  Linear linear(const std::string& name, int in, int out);
  bool borrowed() const { return borrowed_; }  // whether any is the lender's

 private:
  TensorView take(const std::string& name, TensorType type, const Extents& shape);
  const TensorView* lent(const std::string& name) const;

  Safetensors& file_;
  std::string prefix_;
  const Tensors* lender_;
  std::map<std::string, TensorView> taken_;  // by the names of a bundle of its own
  bool borrowed_ = false;
};

// The gate's own; `channels` of what each gated block takes.
void fill_gate(Tensors& tensors, bool budget_input, const std::vector<int>& channels, Network& network);

// All that tensors say of a network.
Network fill_network(BundlePlan plan, Tensors& tensors);

}  // namespace fracskip
