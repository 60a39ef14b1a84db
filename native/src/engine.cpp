#include "engine.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "plan.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fracskip {
namespace {

// One thread's activations, scratch and gate state.
struct Arena {
  explicit Arena(const Plan& plan)
      : sums(sizeof(float) * plan.most_channels),
        pooled(sizeof(float) * plan.most_channels),
        scratch(plan.scratch_bytes),
        gate(sizeof(float) * (8 * static_cast<std::size_t>(plan.padded_width) + plan.padded_options)) {
    for (const Layout& layout : plan.layouts) activations.emplace_back(layout.bytes());
    if (plan.first_gated < plan.blocks.size()) {
      kept = Buffer(activations[static_cast<std::size_t>(plan.blocks[plan.first_gated].in)].size());
      kept_sums = Buffer(sums.size());
    }
  }

  std::vector<Buffer> activations;
  Buffer sums, pooled, scratch, gate;
  Buffer kept, kept_sums;  // what the first gated block saw, for a second look
};

// Rounding to nearest and gradual underflow, whatever the host program has set.
class FloatEnvironment {
 public:
#if defined(__x86_64__)
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

class Runner {
 public:
  Runner(const Plan& plan, Arena& arena) : plan_(plan), arena_(arena) {}

  void run(const RunRequest& request, std::size_t index) {
    const Layout& layout = plan_.layouts[plan_.image];
    const std::size_t values = static_cast<std::size_t>(layout.h) * layout.w * layout.c;
    const auto begin = std::chrono::steady_clock::now();
    if (request.pixels == PixelType::u8) {
      take_bytes(static_cast<const std::uint8_t*>(request.images) + index * values);
    } else {
      take_floats(static_cast<const float*>(request.images) + index * values);
    }
    for (const StemStep& step : plan_.stem) {
      if (step.is_conv) convolve(step.conv);
      else pool(step.pool);
    }
    if (!plan_.stem.back().is_conv) sum_up(plan_.stem.back().pool.out);
    for (std::size_t b = 0; b < plan_.first_gated; ++b) execute(plan_.blocks[b].options[0]);
    const bool may_repeat = request.confidences && arena_.kept.size();
    if (may_repeat) keep();
    look(request, index, request.budgets, request.leans);
    if (may_repeat) {
      const std::size_t gates = plan_.gates.size();
      std::memcpy(request.first + index * gates, request.decisions + index * gates, gates);
      const bool again = confidence(request.logits + index * static_cast<std::size_t>(plan_.head.out)) < request.confidences[index];
      request.again[index] = again;
      if (again) {
        bring_back();
        look(request, index, request.second_budgets, request.second_leans);
      }
    }
    const std::chrono::duration<float, std::micro> taken = std::chrono::steady_clock::now() - begin;
    request.latency_us[index] = taken.count();
  }

 private:
  // From the first gated block to the logits.
  void look(const RunRequest& request, std::size_t index, const float* budgets, const float* leans) {
    const std::size_t gates = plan_.gates.size();
    start_gate(budgets ? budgets + index : nullptr);
    for (std::size_t b = plan_.first_gated; b < plan_.blocks.size(); ++b) {
      const PlannedBlock& block = plan_.blocks[b];
      int option = 0;
      if (block.gate != kNone) {
        const std::size_t at = index * gates + static_cast<std::size_t>(block.gate);
        option = request.forced ? request.forced[at] : decide(block, leans ? leans[index] : plan_.lean);
        request.decisions[at] = static_cast<std::uint8_t>(option);
      }
      execute(block.options[static_cast<std::size_t>(option)]);
    }
    classify(request.logits + index * static_cast<std::size_t>(plan_.head.out));
  }

  // The stream where a second look goes on, and its channel sums, borders and all.
  Buffer& begun() { return arena_.activations[static_cast<std::size_t>(plan_.blocks[plan_.first_gated].in)]; }
  void keep() {
    std::memcpy(arena_.kept.as<void>(), begun().as<void>(), arena_.kept.size());
    std::memcpy(arena_.kept_sums.as<void>(), arena_.sums.as<void>(), arena_.sums.size());
  }
  void bring_back() {
    std::memcpy(begun().as<void>(), arena_.kept.as<void>(), arena_.kept.size());
    std::memcpy(arena_.sums.as<void>(), arena_.kept_sums.as<void>(), arena_.sums.size());
  }

  // The first choice's probability.
  float confidence(const float* logits) const {
    const float top = *std::max_element(logits, logits + plan_.head.out);
    float sum = 0.f;
    for (int o = 0; o < plan_.head.out; ++o) sum += std::exp(logits[o] - top);
    return 1.f / sum;
  }

  char* at(int activation) {
    const Layout& l = plan_.layouts[static_cast<std::size_t>(activation)];
    return arena_.activations[static_cast<std::size_t>(activation)].as<char>() + l.origin() * static_cast<std::ptrdiff_t>(l.bytes_each());
  }

  void take_bytes(const std::uint8_t* pixels) {
    const Layout& l = plan_.layouts[plan_.image];
    const float* values = plan_.pixel_values.data();
    float* out = reinterpret_cast<float*>(at(plan_.image));
    for (int h = 0; h < l.h; ++h) {
      float* to = out + h * l.row;
      for (int w = 0; w < l.w; ++w) {
        for (int c = 0; c < l.c; ++c) *to++ = values[c * 256 + *pixels++];
      }
    }
  }

  void take_floats(const float* pixels) {
    const Layout& l = plan_.layouts[plan_.image];
    const std::size_t row = static_cast<std::size_t>(l.w) * l.c;
    float* out = reinterpret_cast<float*>(at(plan_.image));
    for (int h = 0; h < l.h; ++h) std::memcpy(out + h * l.row, pixels + h * row, row * sizeof(float));
  }

  void convolve(const ConvStep& step) {
    ConvArgs args = step.args;
    const Layout& in = plan_.layouts[static_cast<std::size_t>(step.in)];
    const Window& window = step.conv->window();
    const std::ptrdiff_t first_tap = window.pad_h * in.row + static_cast<std::ptrdiff_t>(window.pad_w) * in.pixel;
    args.in = at(step.in) - first_tap * static_cast<std::ptrdiff_t>(in.bytes_each());
    args.out = at(step.out);
    if (step.residual != kNone) args.residual = at(step.residual);
    args.scratch = arena_.scratch.as<void>();
    if (step.sums) {
      args.sums = arena_.sums.as<void>();
      std::memset(args.sums, 0, sizeof(float) * static_cast<std::size_t>(args.out_blocks) * kBlock);
    }
    step.conv->run(args);
  }

  template <class T>
  void pool_as(const PoolStep& step) {
    const Layout &in = plan_.layouts[step.in], &out = plan_.layouts[step.out];
    const Window& w = step.window;
    // Values are not negative, so the border's zeros never win.
    const T* from = reinterpret_cast<const T*>(at(step.in)) - w.pad_h * in.row - static_cast<std::ptrdiff_t>(w.pad_w) * in.pixel;
    T* to = reinterpret_cast<T*>(at(step.out));
    for (int oh = 0; oh < out.h; ++oh) {
      for (int ow = 0; ow < out.w; ++ow) {
        T* pixel = to + oh * out.row + static_cast<std::ptrdiff_t>(ow) * out.pixel;
        std::memset(pixel, 0, sizeof(T) * static_cast<std::size_t>(out.pixel));
        for (int y = 0; y < w.kernel_h; ++y) {
          for (int x = 0; x < w.kernel_w; ++x) {
            const T* other = from + (oh * w.stride_h + y) * in.row + static_cast<std::ptrdiff_t>(ow * w.stride_w + x) * in.pixel;
            for (int c = 0; c < out.pixel; ++c) pixel[c] = other[c] > pixel[c] ? other[c] : pixel[c];
          }
        }
      }
    }
  }
  void pool(const PoolStep& step) {
    if (plan_.layouts[step.in].element == Element::f32) pool_as<float>(step);
    else pool_as<std::uint8_t>(step);
  }

  template <class T, class Sum>
  void sum_as(int activation) {
    const Layout& l = plan_.layouts[static_cast<std::size_t>(activation)];
    Sum* sums = arena_.sums.as<Sum>();
    std::memset(sums, 0, sizeof(Sum) * static_cast<std::size_t>(l.pixel));
    for (int h = 0; h < l.h; ++h) {
      const T* row = reinterpret_cast<const T*>(at(activation)) + h * l.row;
      for (int w = 0; w < l.w; ++w, row += l.pixel) {
        for (int c = 0; c < l.pixel; ++c) sums[c] += row[c];
      }
    }
  }
  void sum_up(int activation) {
    if (plan_.integer_stream) sum_as<std::uint8_t, std::uint32_t>(activation);
    else sum_as<float, float>(activation);
  }

  void mean(int channels, float factor) {
    float* pooled = arena_.pooled.as<float>();
    if (plan_.integer_stream) {
      // Sums stay under 2^31 (the reader limits activations), and signed conversion is quicker.
      const std::int32_t* sums = arena_.sums.as<std::int32_t>();
      for (int c = 0; c < channels; ++c) pooled[c] = static_cast<float>(sums[c]) * factor;
    } else {
      const float* sums = arena_.sums.as<float>();
      for (int c = 0; c < channels; ++c) pooled[c] = sums[c] * factor;
    }
  }

  // Gate memory: hidden, cell, encoded budget, five of work, logits.
  float* gate_part(int part) { return arena_.gate.as<float>() + part * plan_.padded_width; }

  void start_gate(const float* budget) {
    if (plan_.gate_kind == GateKind::none) return;
    std::memset(gate_part(0), 0, sizeof(float) * 2 * static_cast<std::size_t>(plan_.padded_width));
    if (plan_.budget.size() == 0 || !budget) return;
    const float encoded = std::log10(*budget) / 1.5f + 1.f;
    const float* weight = plan_.budget.as<float>();
    for (int i = 0; i < plan_.padded_width; ++i) gate_part(2)[i] = weight[i] * encoded + weight[plan_.padded_width + i];
  }

  int decide(const PlannedBlock& block, float lean) {
    if (plan_.gate_kind == GateKind::none) return 0;
    const PlannedGate& gate = plan_.gates[static_cast<std::size_t>(block.gate)];
    mean(gate.channels, block.pooled_factor);
    GateArgs a{};
    a.pooled = arena_.pooled.as<float>();
    a.channels = gate.channels;
    a.width = plan_.gate_width;
    a.padded_width = plan_.padded_width;
    a.options = plan_.options;
    a.padded_options = plan_.padded_options;
    a.recurrent = plan_.gate_kind == GateKind::recurrent;
    a.embed = gate.embed.as<float>();
    a.budget = plan_.budget.size() ? gate_part(2) : nullptr;
    a.lstm = plan_.lstm.as<float>();
    a.out = gate.out.as<float>();
    a.block_bias = gate.block_bias.size() ? gate.block_bias.as<float>() : nullptr;
    a.harm = plan_.harm;
    a.lean = lean;
    a.lean_weights = plan_.lean_weights.data();
    a.hidden = gate_part(0);
    a.cell = gate_part(1);
    a.work = gate_part(3);
    a.logits = gate_part(8);
    return plan_.kernels.gate(a);
  }

  void execute(const PlannedOption& option) {
    if (option.map.function) {
      const MapStep& map = option.map;
      const Layout &in = plan_.layouts[static_cast<std::size_t>(map.in)], &out = plan_.layouts[static_cast<std::size_t>(map.out)];
      map.function({at(map.in), in.row, at(map.out), out.row, in.pixel, out.pixel, in.h, in.w, in.pixel, map.step, map.scale, map.top});
    }
    for (const ConvStep& step : option.convs) convolve(step);
  }

  void classify(float* logits) {
    const Linear& head = plan_.head;
    mean(head.in, plan_.head_factor);
    const float* pooled = arena_.pooled.as<float>();
    for (int o = 0; o < head.out; ++o) {
      const float* weight = &head.weight[static_cast<std::size_t>(o) * head.in];
      float sum[8] = {};  // lanes of a fixed order
      for (int i = 0; i < head.in; ++i) sum[i & 7] += weight[i] * pooled[i];
      for (int i = 1; i < 8; ++i) sum[0] += sum[i];
      logits[o] = sum[0] + head.bias[o];
    }
  }

  const Plan& plan_;
  Arena& arena_;
};

}  // namespace

struct Engine::Impl {
  Impl(const Network& network, Isa wanted, int count)
      : isa(resolve(wanted)), threads(count), plan(network, kernel_set(isa)) {
    for (const Block& block : network.blocks) names.push_back(block.name);
    bits = network.option_bits;
  }

  std::unique_ptr<Arena> take() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!idle.empty()) {
        std::unique_ptr<Arena> arena = std::move(idle.back());
        idle.pop_back();
        return arena;
      }
    }
    return std::make_unique<Arena>(plan);
  }

  void give_back(std::unique_ptr<Arena> arena) {
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(arena));
  }

  Isa isa;
  int threads;
  Plan plan;
  std::vector<std::string> names;
  std::vector<int> bits;
  std::mutex mutex;
  std::vector<std::unique_ptr<Arena>> idle;
};

Engine::Engine(const Network& network, Isa isa, int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  impl_ = std::make_unique<Impl>(network, isa, threads);
}

Engine::~Engine() = default;

int Engine::gated_blocks() const { return static_cast<int>(impl_->plan.gates.size()); }
int Engine::classes() const { return impl_->plan.head.out; }
int Engine::options() const { return impl_->plan.options; }
int Engine::threads() const { return impl_->threads; }
Isa Engine::isa() const { return impl_->isa; }

std::vector<KernelInfo> Engine::kernels() const {
  std::vector<KernelInfo> infos;
  for (std::size_t b = 0; b < impl_->plan.blocks.size(); ++b) {
    const PlannedBlock& block = impl_->plan.blocks[b];
    for (std::size_t k = 0; k < block.options.size(); ++k) {
      KernelInfo info;
      info.block = impl_->names[b];
      const int bits = block.options.size() == impl_->bits.size() ? impl_->bits[k] : kNone;
      info.option = bits == kSkipBits ? "skip" : bits == kFullBits ? "full" : bits == kNone ? "always" : std::to_string(bits);
      for (const ConvStep& step : block.options[k].convs) info.kernels.push_back(step.conv->kernel_name());
      infos.push_back(std::move(info));
    }
  }
  return infos;
}

void Engine::run(const RunRequest& request) const {
  const std::size_t workers = std::min(request.count, static_cast<std::size_t>(impl_->threads));
  // Taken here, where running out of memory can still be reported.
  std::vector<std::unique_ptr<Arena>> arenas;
  for (std::size_t t = 0; t < workers; ++t) arenas.push_back(impl_->take());
  std::atomic<std::size_t> next{0};
  const auto work = [&](Arena* arena) {
    const FloatEnvironment environment;
    const KernelState state(impl_->plan.kernels);
    Runner runner(impl_->plan, *arena);
    for (std::size_t i = next++; i < request.count; i = next++) runner.run(request, i);
  };
  std::vector<std::thread> helpers;
  helpers.reserve(workers);
  try {
    for (std::size_t t = 1; t < workers; ++t) helpers.emplace_back(work, arenas[t].get());
  } catch (const std::system_error&) {
    // The system gives no more threads: those there are do all the work.
  }
  if (workers > 0) work(arenas[0].get());
  for (std::thread& helper : helpers) helper.join();
  for (std::unique_ptr<Arena>& arena : arenas) impl_->give_back(std::move(arena));
}

}  // namespace fracskip
