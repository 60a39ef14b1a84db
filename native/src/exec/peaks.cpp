#include "exec/peaks.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <utility>

#include "exec/team.hpp"
#include "plan/plan.hpp"

namespace fracskip {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kTurn = 1e-3, kWhole = 50e-3;

// So many rounds of a loop in each share; `done` is how much that was.
struct LoopStep final : Step {
  std::function<std::int64_t(std::int64_t, Share)> loop;
  std::int64_t rounds = 1;
  mutable std::atomic<std::int64_t> done{0};

  void run(Memory&, Share share) const override { done += loop(rounds, share); }
};

// The most that a turn did a second, once turns are long enough for the clock.
double best_rate(LoopStep& step, const std::function<void(const Step&)>& run) {
  double best = 0;
  Seconds whole{0};
  while (whole.count() < kWhole) {
    step.done = 0;
    const Clock::time_point begin = Clock::now();
    run(step);
    const Seconds took = Clock::now() - begin;
    whole += took;
    if (took.count() < kTurn) step.rounds *= 2;
    else best = std::max(best, static_cast<double>(step.done) / took.count());
  }
  return best;
}

// By the threads of a team at once, or by this one alone.
PeakRates measure(const KernelSet& set, std::size_t bytes, const Team::Turn* turn) {
  const KernelState state(set);
  const Peaks& peaks = *set.peaks;
  PeakRates rates;
  Memory memory;
  const auto rate = [&](std::function<std::int64_t(std::int64_t, Share)> loop) {
    LoopStep step;
    step.loop = std::move(loop);
    return best_rate(step, [&](const Step& each) { turn ? turn->run(each, memory) : each.run(memory, {}); });
  };
  const auto multiply = [&](std::int64_t (*loop)(std::int64_t)) {
    return loop ? rate([loop](std::int64_t rounds, Share) { return loop(rounds); }) : 0;
  };
  rates.int8 = multiply(peaks.int8);
  rates.fp32 = multiply(peaks.fp32);
  rates.bf16 = multiply(peaks.bf16);
  const std::size_t pieces = (bytes + kPeakBytes - 1) / kPeakBytes;
  Buffer buffer(pieces * kPeakBytes);
  rates.read = rate([&](std::int64_t rounds, Share share) {
    auto count = static_cast<int>(pieces);
    const auto first = static_cast<std::size_t>(share.take(count));
    const std::size_t some = static_cast<std::size_t>(count) * kPeakBytes;
    for (std::int64_t round = 0; round < rounds; ++round) peaks.read(buffer.as<char>() + first * kPeakBytes, some);
    return rounds * static_cast<std::int64_t>(some);
  });
  return rates;
}

}  // namespace

PeakRates measure_peaks(Isa isa, std::size_t bytes, std::size_t threads) {
  PeakRates rates;
  const KernelSet& set = kernel_set(isa);
  if (!set.peaks) return rates;
  if (threads > 1) {
    Team team(threads, isa);
    if (team.gather([&](const Team::Turn& turn) { rates = measure(set, bytes, &turn); })) return rates;
  }
  return measure(set, bytes, nullptr);
}

}  // namespace fracskip
