#include "exec/runner.hpp"

#include <algorithm>
#include <chrono>
#include <limits>

namespace fracskip {
namespace {

using Clock = std::chrono::steady_clock;

float microseconds_since(Clock::time_point begin) {
  return std::chrono::duration<float, std::micro>(Clock::now() - begin).count();
}

}  // namespace

Arena::Arena(const Ensemble& ensemble, std::size_t shares) {
  for (const auto& network : ensemble.networks) networks.push_back({Worker(*network, shares), GateState(network->gates)});
  std::size_t most = 0;
  for (const Resizer& resizer : ensemble.resizers) {
    resized.push_back({Buffer(resizer.bytes()), false});
    most = std::max(most, resizer.scratch_bytes());
  }
  scratch = Buffer(most);
  mean.resize(static_cast<std::size_t>(ensemble.networks[0]->classes));
}

Runner::Runner(const Ensemble& ensemble, Arena& arena, const Team::Turn* turn, std::vector<StepTimes>* profiles) : ensemble_(ensemble), arena_(arena) {
  for (std::size_t k = 0; k < arena.networks.size(); ++k) {
    arena.networks[k].worker.share_with(turn);
    arena.networks[k].worker.record(profiles ? &(*profiles)[k] : nullptr);
  }
}

void Runner::run(const RunRequest& request, std::size_t index, std::size_t image_bytes) {
  const Clock::time_point start = Clock::now();
  const std::size_t last = request.chain.size() - 1;
  const auto classes = static_cast<std::size_t>(ensemble_.networks[0]->classes);
  float* const logits = request.logits + index * classes;
  if (request.gate_us) {
    const std::size_t gates = ensemble_.networks[request.chain[0].network]->gates.count;
    std::fill_n(request.gate_us + index * gates, gates, 0.f);
  }
  const char* const image = static_cast<const char*>(request.images) + index * image_bytes;
  for (Arena::Resized& each : arena_.resized) each.done = false;
  std::size_t position = 0;
  for (;; ++position) {
    const Member& asked = request.chain[position];
    begin(request, image, position);
    member(request, index, asked);
    if (request.averaged) average(logits, asked.temperature, position);
    if (position == last && !asked.scores) break;
    const float score = score_of(logits, classes, request.averaged ? 1.f : asked.temperature, request.score);
    if (asked.scores) asked.scores[index] = score;
    // Of logits that are no numbers the score is none either, so they stay for the caller to see.
    if (position == last || !(score < asked.thresholds[index])) break;
  }
  request.answered[index] = static_cast<std::uint8_t>(position);
  for (std::size_t unseen = position + 1; unseen <= last; ++unseen) {
    if (request.chain[unseen].scores) request.chain[unseen].scores[index] = std::numeric_limits<float>::quiet_NaN();
  }
  request.latency_us[index] = microseconds_since(start);
}

// Makes a member's logits the mean over it and those before it.
void Runner::average(float* logits, float temperature, std::size_t position) {
  const auto share = static_cast<float>(position + 1);
  for (std::size_t i = 0; i < arena_.mean.size(); ++i) {
    float& mean = arena_.mean[i];
    const float own = logits[i] / temperature;
    mean = position == 0 ? own : mean + (own - mean) / share;
    logits[i] = mean;
  }
}

// Whether a member is the network of the one before at other decisions: then it goes on from what the first block took.
bool Runner::repeats(const RunRequest& request, std::size_t position) const {
  if (position == 0 || position >= request.chain.size()) return false;
  const std::size_t network = request.chain[position].network;
  return network == request.chain[position - 1].network && ensemble_.networks[network]->gates.count > 0;
}

// Up to a member's first block.
void Runner::begin(const RunRequest& request, const void* image, std::size_t position) {
  const std::size_t network = request.chain[position].network;
  Worker& worker = arena_.networks[network].worker;
  if (repeats(request, position)) return worker.bring_back();
  worker.begin(resized(image, network), request.pixels);
  if (repeats(request, position + 1)) worker.keep();
}

// An image at a network's size, made once for all networks that have it.
const void* Runner::resized(const void* image, std::size_t network) {
  const std::size_t size = ensemble_.sizes[network];
  if (size == Ensemble::kNone) return image;
  Arena::Resized& held = arena_.resized[size];
  if (!held.done) {
    ensemble_.resizers[size].run(static_cast<const std::uint8_t*>(image), held.pixels.as<std::uint8_t>(), arena_.scratch.as<std::uint8_t>());
    held.done = true;
  }
  return held.pixels.as<void>();
}

// From there to its logits.
void Runner::member(const RunRequest& request, std::size_t index, const Member& asked) {
  const Executor& executor = *ensemble_.networks[asked.network];
  const Gates& gates = executor.gates;
  Worker& worker = arena_.networks[asked.network].worker;
  GateState& gate = arena_.networks[asked.network].gate;
  gate.start(asked.budgets ? asked.budgets + index : nullptr);
  for (std::size_t block = 0; block < gates.count; ++block) {
    const std::size_t at = index * gates.count + block;
    int option = 0;
    if (request.forced) {
      option = request.forced[at];
    } else if (gates.kind != GateKind::none) {
      const Clock::time_point begin = request.gate_us ? Clock::now() : Clock::time_point();
      const StepTimes::Timed timed(worker.profile(), StepTimes::kGates);
      const float multiplier = asked.multipliers ? asked.multipliers[index] : gates.multiplier;
      option = gate.decide(block, worker.pooled(block), multiplier, executor.first_options[block]);
      if (request.gate_us) request.gate_us[at] += microseconds_since(begin);
    }
    asked.decisions[at] = static_cast<std::uint8_t>(option);
    worker.execute(block, static_cast<std::size_t>(option));
  }
  worker.classify(request.logits + index * static_cast<std::size_t>(executor.classes));
}

}  // namespace fracskip
