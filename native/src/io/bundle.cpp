#include "io/bundle.hpp"

#include <string>
#include <utility>
#include <vector>

#include "io/bundle_plan.hpp"
#include "io/bundle_tensors.hpp"
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
  return {fill_network(read_plan(Field(json, "")), Tensors(std::move(file)))};
}

}  // namespace fracskip
