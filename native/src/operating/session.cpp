#include "operating/session.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "exec/finite.hpp"

namespace fracskip {
namespace {

std::size_t product(std::size_t a, std::size_t b) {
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / b) throw std::length_error("more images than memory could hold");
  return a * b;
}

// The caller's array, or one of the call's own.
template <typename Value>
Value* place(Value* given, std::vector<Value>& own, std::size_t count) {
  if (given) return given;
  own.resize(count);
  return own.data();
}

// What one member of a call's chain is asked for, image by image.
struct Asked {
  std::vector<float> budgets, multipliers, thresholds;
  std::vector<std::uint8_t> decisions;
};

void softmax(const float* logits, std::size_t classes, float* out) {
  const float best = *std::max_element(logits, logits + classes);
  float sum = 0.f;
  for (std::size_t o = 0; o < classes; ++o) sum += out[o] = std::exp(logits[o] - best);
  for (std::size_t o = 0; o < classes; ++o) out[o] /= sum;
}

void check_finite(const float* logits, std::size_t count, std::size_t classes) {
  if (all_finite(logits, count * classes)) return;
  std::size_t bad = 0, first = count;
  for (std::size_t i = count; i-- > 0;) {
    if (all_finite(logits + i * classes, classes)) continue;
    ++bad;
    first = i;
  }
  throw NotFinite("logits of " + std::to_string(bad) + " of " + std::to_string(count) + " images are NaN or infinite, the first is image " + std::to_string(first) +
                  ": the bundle's weights are too large for float32; export a network that evaluates well");
}

}  // namespace

Session::Session(WholeBundle bundle, Isa isa, int threads, const Pool& pool)
    : manifest_(std::move(bundle.manifest)), operator_(manifest_), prices_(manifest_), engine_(bundle.networks, isa, threads, kLeastSaving, pool) {
  for (const NetworkManifest& network : manifest_.networks) blocks_ = std::max(blocks_, network.blocks.size());
}

void Session::run(const std::uint8_t* images, std::size_t count, const Operation& operation, const Answers& answers) const {
  if (count == 0) return;
  const auto classes = static_cast<std::size_t>(engine_.classes());
  const std::vector<Setting>& members = operation.members;
  std::vector<Asked> asked(members.size());
  std::vector<float> own_logits, own_latency;
  std::vector<std::uint8_t> own_answered;
  RunRequest request;
  request.images = images;
  request.count = count;
  request.score = operation.score;
  request.averaged = operation.averaged;
  request.logits = place(answers.logits, own_logits, product(count, classes));
  request.latency_us = place(answers.latency_us, own_latency, count);
  request.answered = place(answers.escalations, own_answered, count);
  for (std::size_t k = 0; k < members.size(); ++k) {
    const Setting& setting = members[k];
    Asked& own = asked[k];
    own.decisions.assign(product(count, manifest_.networks[setting.network].blocks.size()), kNoDecision);
    Member member;
    member.network = setting.network;
    member.temperature = setting.temperature;
    member.decisions = own.decisions.data();
    const auto for_all = [&](std::vector<float>& values, float value) {
      values.assign(count, value);
      return values.data();
    };
    if (setting.budget) member.budgets = for_all(own.budgets, *setting.budget);
    if (setting.multiplier) member.multipliers = for_all(own.multipliers, *setting.multiplier);
    if (k + 1 < members.size()) member.thresholds = for_all(own.thresholds, operation.thresholds[k]);
    request.chain.push_back(member);
  }
  engine_.run(request);
  check_finite(request.logits, count, classes);

  std::vector<Executed> executed;
  for (std::size_t i = 0; i < count; ++i) {
    const float* const logits = request.logits + i * classes;
    executed.clear();
    for (std::size_t k = 0; k <= request.answered[i]; ++k) {
      executed.push_back({members[k].network, asked[k].decisions.data() + i * manifest_.networks[members[k].network].blocks.size()});
    }
    const Executed& last = executed.back();
    const std::size_t own_blocks = manifest_.networks[last.network].blocks.size();
    if (answers.probabilities) softmax(logits, classes, answers.probabilities + i * classes);
    if (answers.classes) answers.classes[i] = static_cast<std::int32_t>(std::max_element(logits, logits + classes) - logits);
    if (answers.costs) answers.costs[i] = prices_.of(executed);
    if (answers.networks) answers.networks[i] = static_cast<std::uint8_t>(last.network);
    if (answers.decisions) {
      std::uint8_t* const row = answers.decisions + i * blocks_;
      std::copy_n(last.decisions, own_blocks, row);
      std::fill(row + own_blocks, row + blocks_, kNoDecision);
    }
  }
}

}  // namespace fracskip
