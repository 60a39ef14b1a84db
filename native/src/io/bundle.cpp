#include "io/bundle.hpp"

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "io/bundle_plan.hpp"
#include "io/bundle_tensors.hpp"
#include "io/cascade.hpp"
#include "io/json.hpp"
#include "io/safetensors.hpp"

namespace fracskip {
namespace {

constexpr std::size_t kMaxPlanValues = std::size_t{1} << 18;

const std::string& plan_text(const Safetensors& file) {
  const auto plan = file.metadata.find("fracskip");
  if (plan == file.metadata.end()) {
    throw BundleError("this is a plain safetensors file without a plan, not a bundle");
  }
  if (file.metadata.size() != 2 || file.metadata.count("digest") == 0) {
    throw BundleError("__metadata__ must hold 'fracskip' and 'digest' and nothing else");
  }
  return plan->second;
}

void refuse_surplus(const Safetensors& file) {
  if (file.tensors.empty()) return;
  throw BundleError("the plan has no place for tensor " + quoted(file.tensors.begin()->first));
}

Network read_network(const Field& root, Safetensors& file) {
  Tensors tensors(file, "", nullptr);
  Network network = fill_network(read_plan(root), tensors);
  refuse_surplus(file);
  return network;
}

std::vector<Network> read_networks(const Field& root, Safetensors& file) {
  CascadePlan plan = read_cascade(root);
  std::vector<Network> networks;
  std::deque<Tensors> tensors;  // those that lend stay where they are
  for (std::size_t i = 0; i < plan.networks.size(); ++i) {
    const auto lender = plan.weights_of[i];
    tensors.emplace_back(file, std::to_string(i) + ".", lender ? &tensors[*lender] : nullptr);
    try {
      networks.push_back(fill_network(std::move(plan.networks[i]), tensors.back()));
    } catch (const BundleError& error) {
      throw BundleError("network " + std::to_string(i) + ": " + error.what());
    }
    if (lender && !tensors.back().borrowed()) {
      throw BundleError("network " + std::to_string(i) + " shares no tensor with network " + std::to_string(*lender));
    }
  }
  refuse_surplus(file);
  return networks;
}

}  // namespace

std::vector<Network> read_bundle(const std::uint8_t* data, std::size_t size) {
  Safetensors file;
  Json json;
  try {
    file = read_safetensors(data, size);
    json = parse_json(plan_text(file), {64, kMaxPlanValues});
  } catch (const SafetensorsError& error) {
    throw BundleError(error.what());
  } catch (const JsonError& error) {
    throw BundleError(std::string("plan: ") + error.what());
  }
  const Field root(json, "");
  if (is_cascade(root)) return read_networks(root, file);
  return {read_network(root, file)};
}

}  // namespace fracskip
