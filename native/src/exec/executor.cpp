#include "exec/executor.hpp"

#include <algorithm>
#include <cstring>

#include "exec/float_environment.hpp"
#include "interrupt.hpp"

namespace fracskip {
namespace {

std::size_t count_gated(const Network& network) {
  return static_cast<std::size_t>(std::count_if(network.parts.begin(), network.parts.end(), [](const Part& part) { return part.gated; }));
}

Memory make_memory(const Plan& plan, std::size_t shares) {
  Memory memory;
  for (std::size_t bytes : plan.buffer_bytes) memory.buffers.emplace_back(bytes);
  for (std::size_t share = 0; share < shares; ++share) memory.scratch.emplace_back(plan.scratch_bytes);
  memory.sums = Buffer(sizeof(float) * static_cast<std::size_t>(plan.most_channels));
  return memory;
}

}  // namespace

Executor::Executor(const Network& network, const KernelSet& kernels)
    : set(kernels), plan(network, kernels), gates(network, kernels, count_gated(network)), reader(network, *kernels.values), classes(network.classes), takes_budget(!network.gate.budget_weight.empty()) {
  const bool skips = network.option_bits.front() == kSkipBits;
  for (std::size_t p = 0; p < network.parts.size(); ++p) {
    names.push_back(network.parts[p].name);
    if (!network.parts[p].gated) continue;
    gated.push_back(p);
    first_options.push_back(skips && !network.parts[p].residual);
  }
  gated.push_back(network.parts.size());
  std::size_t index = 0;
  each_step([&](const std::string&, const std::string&, Step& step) { step.index = index++; });
}

template <class Function>
void Executor::each_step(Function function) const {
  for (const auto& step : plan.spread.steps) function("", "", *step);
  for (std::size_t p = 0; p < plan.parts.size(); ++p) {
    for (const Course& course : plan.parts[p].options) {
      for (const auto& step : course.steps) function(names[p], course.option, *step);
    }
  }
}

std::vector<Executor::ProfileRow> Executor::profile_rows() const {
  const std::int64_t pixels = plan.image.bytes();
  std::vector<ProfileRow> rows = {{"", "", {"pixels", 0, pixels + pixels / static_cast<std::int64_t>(sizeof(float))}}, {"", "", {"gates", 0, 0}}};
  each_step([&](const std::string& part, const std::string& option, const Step& step) { rows.push_back({part, option, step.info}); });
  return rows;
}

std::vector<KernelInfo> Executor::kernel_infos() const {
  std::vector<KernelInfo> infos;
  for (std::size_t p = 0; p < plan.parts.size(); ++p) {
    for (const Course& course : plan.parts[p].options) infos.push_back({names[p], course.option, course.kernels});
  }
  return infos;
}

bool Executor::choose_shared(std::size_t threads, std::chrono::microseconds least_saving) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 3;
  if (threads < 2) return false;
  const FloatEnvironment environment;
  const KernelState state(set);
  Memory memory = make_memory(plan, threads);
  bool any = false;
  for (const PlannedPart& part : plan.parts) {
    for (const Course& course : part.options) {
      for (const auto& step : course.steps) {
        check_interrupt();
        Clock::duration least = Clock::duration::max();
        for (int round = 0; round < kRounds; ++round) {
          const Clock::time_point begin = Clock::now();
          step->run(memory, {});
          least = std::min(least, Clock::now() - begin);
        }
        step->is_shared = step->can_be_shared() && least - least / threads > least_saving;
        any = any || step->is_shared;
      }
    }
  }
  return any;
}

Worker::Worker(const Executor& executor, std::size_t shares) : executor_(executor), memory_(make_memory(executor.plan, shares)) {
  const Plan& plan = executor.plan;
  pooled_ = Buffer(memory_.sums.size());
  if (executor.gated[0] == plan.parts.size()) return;
  kept_ = Buffer(plan.parts[executor.gated[0]].in.layout.bytes());
  kept_sums_ = Buffer(memory_.sums.size());
}

void Worker::begin(const void* image, PixelType pixels) {
  const Plan& plan = executor_.plan;
  {
    const StepTimes::Timed timed(profile_, StepTimes::kPixels);
    executor_.reader.take(image, pixels, plan.image.layout, reinterpret_cast<float*>(memory_.at(plan.image)));
  }
  run(plan.spread);
  memory_.summed = false;
  execute_fixed(0, executor_.gated[0]);
}

const float* Worker::pooled(std::size_t block) {
  const PlannedPart& part = executor_.plan.parts[executor_.gated[block]];
  const Layout& l = part.in.layout;
  float* pooled = pooled_.as<float>();
  if (part.in.is_levels()) {
    mean_of_levels(memory_, executor_.set.values->level_mean, part.mean, part.in, pooled);
  } else if (memory_.summed) {
    const float share = 1.f / (static_cast<float>(l.h) * static_cast<float>(l.w));
    for (int c = 0; c < l.pixel; ++c) pooled[c] = memory_.sums.as<float>()[c] * share;
  } else {
    ValueArgs a{};
    a.in = reinterpret_cast<const float*>(memory_.at(part.in));
    a.out = pooled;
    a.pixels = l.h * l.w;
    a.channels = l.pixel;
    executor_.set.values->mean(a);
  }
  return pooled;
}

void Worker::execute(std::size_t block, std::size_t option) {
  execute(executor_.plan.parts[executor_.gated[block]], option);
  execute_fixed(executor_.gated[block] + 1, executor_.gated[block + 1]);
}

void Worker::execute(const PlannedPart& part, std::size_t option) {
  const Course& course = part.options[option];
  run(course);
  // What is handed on untouched keeps its sums.
  if (!course.steps.empty()) memory_.summed = course.sums;
}

void Worker::run(const Course& course) {
  for (const auto& step : course.steps) {
    const StepTimes::Timed timed(profile_, StepTimes::kSteps + step->index);
    if (turn_ && step->is_shared) turn_->run(*step, memory_);
    else step->run(memory_, {});
  }
}

void Worker::execute_fixed(std::size_t begin, std::size_t end) {
  for (std::size_t p = begin; p < end; ++p) execute(executor_.plan.parts[p], 0);
}

void Worker::classify(float* logits) {
  const Place& out = executor_.plan.parts.back().out;
  std::memcpy(logits, memory_.at(out), static_cast<std::size_t>(out.layout.c) * sizeof(float));
}

void Worker::keep() {
  std::memcpy(kept_.as<void>(), begun().as<void>(), kept_.size());
  std::memcpy(kept_sums_.as<void>(), memory_.sums.as<void>(), kept_sums_.size());
  kept_summed_ = memory_.summed;
}

void Worker::bring_back() {
  std::memcpy(begun().as<void>(), kept_.as<void>(), kept_.size());
  std::memcpy(memory_.sums.as<void>(), kept_sums_.as<void>(), kept_sums_.size());
  memory_.summed = kept_summed_;
}

}  // namespace fracskip
