#include "io/bundle.hpp"

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "io/bundle_plan.hpp"
#include "io/bundle_tensors.hpp"
#include "io/cascade.hpp"
#include "io/json.hpp"
#include "io/manifest.hpp"
#include "io/safetensors.hpp"
#include "io/sha256.hpp"

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

struct Opened {
  Safetensors file;
  Json plan;

  std::vector<Network> networks() {
    const Field root(plan, "");
    if (is_cascade(root)) return read_networks(root, file);
    return {read_network(root, file)};
  }
};

Opened open(const std::uint8_t* data, std::size_t size) {
  Opened opened;
  try {
    opened.file = read_safetensors(data, size);
    opened.plan = parse_json(plan_text(opened.file), {64, kMaxPlanValues});
  } catch (const SafetensorsError& error) {
    throw BundleError(error.what());
  } catch (const JsonError& error) {
    throw BundleError(std::string("plan: ") + error.what());
  }
  return opened;
}

std::string digest_of(const Safetensors& file) {
  Sha256 sum;
  sum.update(plan_text(file) + "\n");
  sum.update(file.body, file.body_bytes);
  for (const auto& [name, view] : file.tensors) {
    const auto begin = static_cast<std::size_t>(view.data - file.body);
    const std::size_t end = begin + view.elements * (view.type == TensorType::f32 ? sizeof(float) : 1);
    sum.update("\n" + name + " " + type_name(view.type) + " " + shape_name(view.shape) + " " + std::to_string(begin) + " " + std::to_string(end));
  }
  return "sha256:" + sum.hex();
}

}  // namespace

std::vector<Network> read_bundle(const std::uint8_t* data, std::size_t size) { return open(data, size).networks(); }

WholeBundle read_whole_bundle(const std::uint8_t* data, std::size_t size, Digest checked) {
  Opened opened = open(data, size);
  const std::string digest = digest_of(opened.file);
  if (checked == Digest::verified && opened.file.metadata.at("digest") != digest) {
    throw BundleError("it does not match its digest: at least one byte was changed since it was written; copy it again");
  }
  WholeBundle bundle;
  bundle.networks = opened.networks();
  bundle.manifest = read_manifest(Field(opened.plan, ""), bundle.networks);
  bundle.manifest.digest = digest;
  return bundle;
}

}  // namespace fracskip
