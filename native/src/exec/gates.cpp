#include "exec/gates.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace fracskip {
namespace {

// (out, in) to (in, padded out), so that outputs lie side by side; the bias follows.
void transpose(const Linear& linear, int padded, float* to) {
  for (int o = 0; o < linear.out; ++o) {
    for (int i = 0; i < linear.in; ++i) {
      to[i * padded + o] = linear.weight[static_cast<std::size_t>(o) * linear.in + i];
    }
    if (!linear.bias.empty()) to[linear.in * padded + o] = linear.bias[o];
  }
}

Buffer transposed(const Linear& linear, int padded) {
  Buffer buffer(sizeof(float) * static_cast<std::size_t>(linear.in + 1) * padded);
  transpose(linear, padded, buffer.as<float>());
  return buffer;
}

bool all_bf16(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & 0xffffu) == 0;
  });
}

// Rows of a multiple of 16 values, as gate.inl's HalfRows has them.
Buffer in_halves(const Buffer& floats) {
  const std::size_t count = floats.size() / sizeof(float);
  Buffer halves(count * sizeof(std::uint16_t));
  const auto* from = floats.as<std::uint32_t>();
  auto* to = halves.as<std::uint32_t>();
  for (std::size_t group = 0; group < count; group += 16) {
    for (std::size_t j = 0; j < 8; ++j) *to++ = from[group + j] >> 16 | (from[group + 8 + j] & 0xffff0000u);
  }
  return halves;
}

// The LSTM's four parts each get their own padded width.
Linear with_padded_parts(const Linear& linear, int width, int padded) {
  Linear out;
  out.in = linear.in;
  out.out = 4 * padded;
  out.weight.assign(static_cast<std::size_t>(out.out) * out.in, 0.f);
  out.bias.assign(linear.bias.empty() ? 0 : out.out, 0.f);
  for (int part = 0; part < 4; ++part) {
    for (int i = 0; i < width; ++i) {
      const std::size_t from = part * width + i, to = part * padded + i;
      std::copy_n(&linear.weight[from * linear.in], linear.in, &out.weight[to * linear.in]);
      if (!linear.bias.empty()) out.bias[to] = linear.bias[from];
    }
  }
  return out;
}

}  // namespace

Gates::Gates(const Network& network, const KernelSet& set, std::size_t blocks)
    : kernels(set), count(blocks), kind(network.gate.kind), options(static_cast<int>(network.option_bits.size())) {
  const Gate& gate = network.gate;
  if (kind == GateKind::none) return;
  width = gate.width;
  padded_width = round_up(width, 8);
  padded_options = round_up(options, 8);
  sensitivity = gate.sensitivity;
  multiplier = gate.multiplier;
  for (int k = 0; k < options; ++k) {
    const double share = static_cast<double>(network.option_bits[k]) / network.option_bits.back();
    const double rank = static_cast<double>(k) / std::max(options - 1, 1);
    cost_weights.push_back(static_cast<float>(gate.sensitivity ? share * share : rank));
  }
  for (std::size_t g = 0; g < gate.embed.size(); ++g) {
    Own planned;
    planned.channels = gate.embed[g].in;
    Linear embed = gate.embed[g];
    planned.embed_bias = Buffer(sizeof(float) * padded_width);
    std::copy(embed.bias.begin(), embed.bias.end(), planned.embed_bias.as<float>());
    embed.bias.clear();
    planned.embed_bf16 = padded_width % 16 == 0 && all_bf16(embed.weight);
    planned.embed = transposed(embed, padded_width);
    if (planned.embed_bf16) planned.embed = in_halves(planned.embed);
    planned.out = transposed(gate.out[gate.kind == GateKind::recurrent ? 0 : g], padded_options);
    if (!gate.block_bias.empty()) {
      planned.block_bias = Buffer(sizeof(float) * padded_options);
      std::copy_n(&gate.block_bias[g * options], options, planned.block_bias.as<float>());
    }
    own.push_back(std::move(planned));
  }
  if (gate.kind == GateKind::recurrent) {
    // Rows of the input's weights, rows of the hidden state's, then the bias.
    const int row = 4 * padded_width;
    lstm = Buffer(sizeof(float) * static_cast<std::size_t>(2 * width + 1) * row);
    Linear input = with_padded_parts(gate.lstm_input, width, padded_width);
    const Linear hidden = with_padded_parts(gate.lstm_hidden, width, padded_width);
    std::copy(input.bias.begin(), input.bias.end(), lstm.as<float>() + 2 * width * row);
    input.bias.clear();
    transpose(input, row, lstm.as<float>());
    transpose(hidden, row, lstm.as<float>() + width * row);
  }
  if (!gate.budget_weight.empty()) {
    budget = Buffer(sizeof(float) * 2 * padded_width);
    std::copy(gate.budget_weight.begin(), gate.budget_weight.end(), budget.as<float>());
    std::copy(gate.budget_bias.begin(), gate.budget_bias.end(), budget.as<float>() + padded_width);
  }
}

GateState::GateState(const Gates& gates)
    : gates_(gates), memory_(sizeof(float) * (8 * static_cast<std::size_t>(gates.padded_width) + gates.padded_options)) {}

void GateState::start(const float* budget) {
  if (gates_.kind == GateKind::none) return;
  std::memset(part(0), 0, sizeof(float) * 2 * static_cast<std::size_t>(gates_.padded_width));
  if (gates_.budget.size() == 0 || !budget) return;
  const float encoded = std::log10(*budget) / 1.5f + 1.f;
  const float* weight = gates_.budget.as<float>();
  for (int i = 0; i < gates_.padded_width; ++i) part(2)[i] = weight[i] * encoded + weight[gates_.padded_width + i];
}

int GateState::decide(std::size_t block, const float* pooled, float multiplier, int first) {
  const Gates::Own& own = gates_.own[block];
  GateArgs a{};
  a.pooled = pooled;
  a.channels = own.channels;
  a.width = gates_.width;
  a.padded_width = gates_.padded_width;
  a.options = gates_.options;
  a.padded_options = gates_.padded_options;
  a.recurrent = gates_.kind == GateKind::recurrent;
  a.embed = own.embed.as<void>();
  a.embed_bf16 = own.embed_bf16;
  a.embed_bias = own.embed_bias.as<float>();
  a.budget = gates_.budget.size() ? part(2) : nullptr;
  a.lstm = gates_.lstm.as<float>();
  a.out = own.out.as<float>();
  a.block_bias = own.block_bias.size() ? own.block_bias.as<float>() : nullptr;
  a.sensitivity = gates_.sensitivity;
  a.multiplier = multiplier;
  a.cost_weights = gates_.cost_weights.data();
  a.hidden = part(0);
  a.cell = part(1);
  a.work = part(3);
  a.scores = part(8);
  int option = gates_.kernels.gate(a);
  if (option < first) option = static_cast<int>(std::min_element(a.scores + first, a.scores + a.options) - a.scores);
  return option;
}

}  // namespace fracskip
