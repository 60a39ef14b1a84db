#include "exec/engine.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "exec/executor.hpp"
#include "exec/float_environment.hpp"
#include "interrupt.hpp"

namespace fracskip {
namespace {

// One thread's memory.
struct Arena {
  explicit Arena(const Executor& executor) : worker(executor), gate(executor.gates) {}

  Worker worker;
  GateState gate;
};

using Clock = std::chrono::steady_clock;

float microseconds_since(Clock::time_point begin) {
  return std::chrono::duration<float, std::micro>(Clock::now() - begin).count();
}

class Runner {
 public:
  Runner(const Executor& executor, const std::vector<int>& first_options, Arena& arena)
      : executor_(executor), first_options_(first_options), worker_(arena.worker), gate_(arena.gate) {}

  void run(const RunRequest& request, std::size_t index, std::size_t image_bytes) {
    const std::size_t gates = executor_.gates.count;
    const Clock::time_point begin = Clock::now();
    if (request.gate_us) std::fill_n(request.gate_us + index * gates, gates, 0.f);
    worker_.begin(static_cast<const char*>(request.images) + index * image_bytes, request.pixels);
    const bool cascade = request.thresholds && gates > 0;
    if (cascade) worker_.keep();
    member(request, index, request.budgets, request.multipliers, request.decisions);
    if (cascade) {
      const bool escalated = confidence(request.logits + index * classes()) < request.thresholds[index];
      request.escalated[index] = escalated;
      if (escalated) {
        worker_.bring_back();
        member(request, index, request.second_budgets, request.second_multipliers, request.second_decisions);
      }
    }
    request.latency_us[index] = microseconds_since(begin);
  }

 private:
  std::size_t classes() const { return static_cast<std::size_t>(executor_.classes); }

  // From the first gated block to the logits.
  void member(const RunRequest& request, std::size_t index, const float* budgets, const float* multipliers, std::uint8_t* decisions) {
    const Gates& gates = executor_.gates;
    gate_.start(budgets ? budgets + index : nullptr);
    for (std::size_t block = 0; block < gates.count; ++block) {
      const std::size_t at = index * gates.count + block;
      int option = 0;
      if (request.forced) {
        option = request.forced[at];
      } else if (gates.kind != GateKind::none) {
        const Clock::time_point begin = request.gate_us ? Clock::now() : Clock::time_point();
        const float multiplier = multipliers ? multipliers[index] : gates.multiplier;
        option = gate_.decide(block, worker_.pooled(block), multiplier, first_options_[block]);
        if (request.gate_us) request.gate_us[at] += microseconds_since(begin);
      }
      decisions[at] = static_cast<std::uint8_t>(option);
      worker_.execute(block, static_cast<std::size_t>(option));
    }
    worker_.classify(request.logits + index * classes());
  }

  // The first choice's probability.
  float confidence(const float* logits) const {
    const float top = *std::max_element(logits, logits + classes());
    float sum = 0.f;
    for (std::size_t o = 0; o < classes(); ++o) sum += std::exp(logits[o] - top);
    return 1.f / sum;
  }

  const Executor& executor_;
  const std::vector<int>& first_options_;
  Worker& worker_;
  GateState& gate_;
};

}  // namespace

struct Engine::Impl {
  Impl(const Network& network, Isa wanted, int count) : isa(resolve(wanted)), threads(count), executor(network, kernel_set(isa)) {
    image_values = static_cast<std::size_t>(network.height) * network.width * network.channels;
    const bool skips = network.option_bits.front() == kSkipBits;
    for (const Part& part : network.parts) {
      if (part.gated) first_options.push_back(skips && !part.residual);
    }
  }

  std::unique_ptr<Arena> take() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!idle.empty()) {
        std::unique_ptr<Arena> arena = std::move(idle.back());
        idle.pop_back();
        return arena;
      }
      idle.reserve(++made);  // so that giving them back takes no memory
    }
    return std::make_unique<Arena>(executor);
  }

  void give_back(std::unique_ptr<Arena> arena) {
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(arena));
  }

  Isa isa;
  int threads;
  Executor executor;
  std::size_t image_values;
  std::vector<int> first_options;  // that gated blocks may take
  std::mutex mutex;
  std::size_t made = 0;  // arenas, at most
  std::vector<std::unique_ptr<Arena>> idle;
};

Engine::Engine(const Network& network, Isa isa, int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  impl_ = std::make_unique<Impl>(network, isa, threads);
}

Engine::~Engine() = default;

int Engine::gated_blocks() const { return static_cast<int>(impl_->executor.gates.count); }
int Engine::classes() const { return impl_->executor.classes; }
int Engine::options() const { return impl_->executor.gates.options; }
int Engine::threads() const { return impl_->threads; }
Isa Engine::isa() const { return impl_->isa; }
int Engine::first_option(int block) const { return impl_->first_options[static_cast<std::size_t>(block)]; }
const std::string& Engine::block_name(int block) const { return impl_->executor.names[impl_->executor.gated[static_cast<std::size_t>(block)]]; }
std::vector<KernelInfo> Engine::kernels() const { return impl_->executor.kernel_infos(); }

void Engine::run(const RunRequest& request) const {
  const std::size_t workers = std::min(request.count, static_cast<std::size_t>(impl_->threads));
  const std::size_t image_bytes = impl_->image_values * (request.pixels == PixelType::u8 ? 1 : sizeof(float));
  // Taken here, where running out of memory can still be reported.
  std::vector<std::unique_ptr<Arena>> arenas;
  for (std::size_t t = 0; t < workers; ++t) arenas.push_back(impl_->take());
  std::atomic<std::size_t> next{0};
  // Of the caller's thread: no other has a check, or starts threads.
  std::exception_ptr failure;
  const auto give_up = [&] {
    failure = std::current_exception();
    next = request.count;  // the others stop after the image that they are at
  };
  const auto work = [&](Arena* arena) {
    const FloatEnvironment environment;
    const KernelState state(impl_->executor.set);
    Runner runner(impl_->executor, impl_->first_options, *arena);
    try {
      for (std::size_t i = next++; i < request.count; i = next++) {
        runner.run(request, i, image_bytes);
        check_interrupt();
      }
    } catch (...) {
      give_up();
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (std::size_t t = 1; t < workers; ++t) helpers.emplace_back(work, arenas[t].get());
  } catch (const std::system_error&) {
    // The system gives no more threads: those there are do all the work.
  } catch (...) {
    give_up();  // out of memory
  }
  if (workers > 0) work(arenas[0].get());
  for (std::thread& helper : helpers) helper.join();
  for (std::unique_ptr<Arena>& arena : arenas) impl_->give_back(std::move(arena));
  if (failure) std::rethrow_exception(failure);
}

}  // namespace fracskip
