#include "io/bundle_tensors.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "interrupt.hpp"
#include "io/json.hpp"

namespace fracskip {

std::vector<float> Tensors::floats(const std::string& name, const Extents& shape) {
  const TensorView view = take(name, TensorType::f32, shape);
  std::vector<float> out(view.elements);
  if (!out.empty()) std::memcpy(out.data(), view.data, out.size() * sizeof(float));
  if (!std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); })) {
    throw BundleError("tensor " + name + " has values that are NaN or infinite");
  }
  return out;
}

std::vector<float> Tensors::positives(const std::string& name, const Extents& shape) {
  std::vector<float> out = floats(name, shape);
  if (!std::all_of(out.begin(), out.end(), [](float x) { return x > 0.f; })) {
    throw BundleError("tensor " + name + " has values that are not above zero");
  }
  return out;
}

std::vector<std::int8_t> Tensors::integers(const std::string& name, const Extents& shape, int bits) {
  const TensorView view = take(name, TensorType::i8, shape);
  std::vector<std::int8_t> out(view.elements);
  if (!out.empty()) std::memcpy(out.data(), view.data, out.size());
  const int largest = (1 << (bits - 1)) - 1;
  const auto outside = std::find_if(out.begin(), out.end(),
                                    [&](int w) { return w < -largest || w > largest; });
  if (outside != out.end()) {
    throw BundleError("tensor " + name + " has the weight " + std::to_string(*outside) + ", " +
                      std::to_string(bits) + " bits hold up to " + std::to_string(largest));
  }
  return out;
}

const TensorView* Tensors::lent(const std::string& name) const {
  constexpr const char* kShared = ".weight";  // the absence of others says something
  const std::size_t end = std::strlen(kShared);
  if (!lender_ || name.size() < end || name.compare(name.size() - end, end, kShared) != 0) return nullptr;
  const auto found = lender_->taken_.find(name);
  return found == lender_->taken_.end() ? nullptr : &found->second;
}

TensorView Tensors::take(const std::string& name, TensorType type, const Extents& shape) {
  check_interrupt();
  TensorView view;
  const auto own = file_.tensors.find(prefix_ + name);
  if (own != file_.tensors.end()) {
    view = std::move(own->second);
    file_.tensors.erase(own);
  } else if (const TensorView* other = lent(name)) {
    view = *other;
    borrowed_ = true;
  } else {
    throw BundleError("tensor " + name + " is missing");
  }
  if (view.type != type || view.shape != shape) {
    throw BundleError("tensor " + name + " is " + type_name(view.type) + " " +
                      shape_name(view.shape) + ", the plan needs " + type_name(type) + " " +
                      shape_name(shape));
  }
  taken_.emplace(name, view);
  return view;
}

Linear Tensors::linear(const std::string& name, int in, int out) {
  Linear linear;
  linear.in = in;
  linear.out = out;
  linear.weight = floats(name + ".weight", {out, in});
  linear.bias = floats(name + ".bias", {out});
  return linear;
}

void fill_gate(Tensors& tensors, bool budget_input, const std::vector<int>& channels, Network& network) {
  Gate& gate = network.gate;
  if (gate.kind == GateKind::none) return;
  const int options = static_cast<int>(network.option_bits.size());
  const std::int64_t width = gate.width;
  const auto gated = static_cast<std::int64_t>(channels.size());
  for (std::size_t g = 0; g < channels.size(); ++g) {
    const std::string index = std::to_string(g);
    gate.embed.push_back(tensors.linear("gate.embed." + index, channels[g], gate.width));
    if (gate.kind == GateKind::feedforward) {
      gate.out.push_back(tensors.linear("gate.out." + index, gate.width, options));
    }
  }
  if (budget_input) {
    gate.budget_weight = tensors.floats("gate.budget.weight", {width});
    gate.budget_bias = tensors.floats("gate.budget.bias", {width});
  }
  if (gate.kind != GateKind::recurrent) return;
  gate.lstm_input.in = gate.lstm_hidden.in = gate.width;
  gate.lstm_input.out = gate.lstm_hidden.out = 4 * gate.width;
  gate.lstm_input.weight = tensors.floats("gate.lstm.weight_ih", {4 * width, width});
  gate.lstm_hidden.weight = tensors.floats("gate.lstm.weight_hh", {4 * width, width});
  gate.lstm_input.bias = tensors.floats("gate.lstm.bias", {4 * width});
  gate.out.push_back(tensors.linear("gate.out", gate.width, options));
  if (tensors.has("gate.block_bias")) {
    gate.block_bias = tensors.floats("gate.block_bias", {gated, options});
  }
}

}  // namespace fracskip
