// Executes networks of version 2.
#include <algorithm>
#include <cstring>
#include <utility>

#include "exec/executor.hpp"
#include "plan/graph_plan.hpp"

namespace fracskip {
namespace {

class GraphWorker final : public Worker {
 public:
  GraphWorker(const GraphPlan& plan, const ImageReader& reader, const std::vector<std::size_t>& gated, const KernelSet& kernels)
      : plan_(plan), reader_(reader), gated_(gated), values_(*kernels.values) {
    for (std::size_t bytes : plan.buffer_bytes) memory_.buffers.emplace_back(bytes);
    memory_.scratch = Buffer(plan.scratch_bytes);
    memory_.sums = Buffer(sizeof(float) * static_cast<std::size_t>(plan.most_channels));
    pooled_ = Buffer(memory_.sums.size());
    if (gated_[0] == plan.parts.size()) return;
    kept_ = Buffer(bytes_of(begun()));
    kept_sums_ = Buffer(memory_.sums.size());
  }

  void begin(const void* image, PixelType pixels) override {
    reader_.take(image, pixels, plan_.image.layout, reinterpret_cast<float*>(memory_.at(plan_.image)));
    plan_.spread.run(memory_);
    summed_ = false;
    execute_fixed(0, gated_[0]);
  }

  const float* pooled(std::size_t block) override {
    const PlannedPart& part = plan_.parts[gated_[block]];
    const Layout& l = part.in.layout;
    float* pooled = pooled_.as<float>();
    if (part.in.is_levels()) {
      pool_levels(part, pooled);
    } else if (summed_) {
      const float share = 1.f / (static_cast<float>(l.h) * static_cast<float>(l.w));
      for (int c = 0; c < l.pixel; ++c) pooled[c] = memory_.sums.as<float>()[c] * share;
    } else {
      ValueArgs a{};
      a.in = reinterpret_cast<const float*>(memory_.at(part.in));
      a.out = pooled;
      a.pixels = l.h * l.w;
      a.channels = l.pixel;
      values_.mean(a);
    }
    return pooled;
  }

  void execute(std::size_t block, std::size_t option) override {
    execute(plan_.parts[gated_[block]], option);
    execute_fixed(gated_[block] + 1, gated_[block + 1]);
  }

  void classify(float* logits) override {
    const Place& out = plan_.parts.back().out;
    std::memcpy(logits, memory_.at(out), static_cast<std::size_t>(out.layout.c) * sizeof(float));
  }

  void keep() override {
    std::memcpy(kept_.as<void>(), memory_.at(begun()), kept_.size());
    std::memcpy(kept_sums_.as<void>(), memory_.sums.as<void>(), kept_sums_.size());
    kept_summed_ = summed_;
  }
  void bring_back() override {
    std::memcpy(memory_.at(begun()), kept_.as<void>(), kept_.size());
    std::memcpy(memory_.sums.as<void>(), kept_sums_.as<void>(), kept_sums_.size());
    summed_ = kept_summed_;
  }

 private:
  const Place& begun() const { return plan_.parts[gated_[0]].in; }
  static std::size_t bytes_of(const Place& value) {  // which has no border
    return static_cast<std::size_t>(value.layout.h) * static_cast<std::size_t>(value.layout.row) * value.layout.bytes_each();
  }

  void pool_levels(const PlannedPart& part, float* pooled) {
    const Layout& l = part.in.layout;
    if (summed_) {
      // Nothing that the loop reads may seem to change with what it writes: it would not become vectors.
      const auto* sums = memory_.sums.as<std::uint32_t>();
      const int channels = l.c, pixels = l.h * l.w, zero = part.zero;
      const float step = part.step;
      for (int c = 0; c < channels; ++c) pooled[c] = level_mean(sums[c], pixels, zero, step);
    } else {
      values_.level_mean({reinterpret_cast<const std::uint8_t*>(memory_.at(part.in)), pooled, l.h * l.w, l.pixel, l.c, part.step, part.zero});
    }
  }

  void execute(const PlannedPart& part, std::size_t option) {
    const Course& course = part.options[option];
    course.run(memory_);
    // What is handed on untouched keeps its sums.
    if (!course.steps.empty()) summed_ = course.sums;
  }

  void execute_fixed(std::size_t begin, std::size_t end) {
    for (std::size_t p = begin; p < end; ++p) execute(plan_.parts[p], 0);
  }

  const GraphPlan& plan_;
  const ImageReader& reader_;
  const std::vector<std::size_t>& gated_;
  const ValueKernels& values_;
  GraphMemory memory_;
  Buffer pooled_;
  Buffer kept_, kept_sums_;
  bool summed_ = false, kept_summed_ = false;  // whether the sums are those of the value at hand
};

class GraphExecutor final : public Executor {
 public:
  GraphExecutor(const GraphNetwork& network, const KernelSet& set)
      : Executor(network, set, count_gated(network)), kernels_(set), plan_(network, set), reader_(network) {
    for (std::size_t p = 0; p < network.parts.size(); ++p) {
      const Part& part = network.parts[p];
      names_.push_back(part.name);
      if (!part.gated) continue;
      gated_.push_back(p);
      unskippable_.push_back(part.can_skip ? "" : part.name);
    }
    gated_.push_back(network.parts.size());
  }

  std::unique_ptr<Worker> make_worker() const override { return std::make_unique<GraphWorker>(plan_, reader_, gated_, kernels_); }
  std::vector<std::string> unskippable() const override { return unskippable_; }

  std::vector<KernelInfo> kernels() const override {
    std::vector<KernelInfo> infos;
    for (std::size_t p = 0; p < plan_.parts.size(); ++p) {
      const PlannedPart& part = plan_.parts[p];
      const bool gated = std::find(gated_.begin(), gated_.end(), p) != gated_.end();
      for (std::size_t k = 0; k < part.options.size(); ++k) {
        infos.push_back({names_[p], gated ? option_label(option_bits[k]) : "always", part.options[k].kernels});
      }
    }
    return infos;
  }

 private:
  static std::size_t count_gated(const GraphNetwork& network) {
    return static_cast<std::size_t>(std::count_if(network.parts.begin(), network.parts.end(), [](const Part& p) { return p.gated; }));
  }

  const KernelSet& kernels_;
  GraphPlan plan_;
  ImageReader reader_;
  std::vector<std::string> names_, unskippable_;
  std::vector<std::size_t> gated_;  // the gated parts, and where parts end
};

}  // namespace

std::unique_ptr<Executor> make_executor(const GraphNetwork& network, const KernelSet& kernels) {
  return std::make_unique<GraphExecutor>(network, kernels);
}

}  // namespace fracskip
