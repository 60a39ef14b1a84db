#include "exec/engine.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "exec/float_environment.hpp"
#include "exec/runner.hpp"
#include "interrupt.hpp"

namespace fracskip {

struct Engine::Impl {
  Impl(const std::vector<Network>& networks, Isa wanted, int count, std::chrono::microseconds least_saving, const Pool& given) : isa(resolve(wanted)), threads(count), pool(given) {
    const Network& first = networks.front();
    for (const Network& network : networks) {
      ensemble.networks.push_back(std::make_unique<Executor>(network, kernel_set(isa)));
      image = {std::max(image.height, network.height), std::max(image.width, network.width), network.channels};
      takes_floats = takes_floats && network.height == first.height && network.width == first.width && network.mean == first.mean && network.std == first.std;
    }
    for (std::size_t k = 0; k < networks.size(); ++k) ensemble.sizes.push_back(size_of(networks, k));
    bool shares = false;
    for (const auto& network : ensemble.networks) shares = network->choose_shared(members(), least_saving) || shares;
    if (shares) team.emplace(members(), isa, pool);
  }

  std::size_t members() const { return static_cast<std::size_t>(threads); }

  // The resizer of a network: that of one before of its size, or a new one.
  std::size_t size_of(const std::vector<Network>& networks, std::size_t index) {
    const int height = networks[index].height, width = networks[index].width;
    if (height == image.height && width == image.width) return Ensemble::kNone;
    for (std::size_t k = 0; k < index; ++k) {
      if (networks[k].height == height && networks[k].width == width) return ensemble.sizes[k];
    }
    ensemble.resizers.emplace_back(image.height, image.width, height, width, image.channels, *kernel_set(isa).resize);
    return ensemble.resizers.size() - 1;
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
    return std::make_unique<Arena>(ensemble, team ? members() : 1);
  }

  void give_back(std::unique_ptr<Arena> arena) {
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(std::move(arena));
  }

  // Images `begin` to `end`: spread over the threads, or each shared by those that `turn` gives.
  void run(const RunRequest& request, std::size_t begin, std::size_t end, const Team::Turn* turn) {
    const std::size_t workers = turn || request.profiles ? 1 : std::min(end - begin, members());
    const std::size_t image_bytes = image.values() * (request.pixels == PixelType::u8 ? 1 : sizeof(float));
    // Taken here, where running out of memory can still be reported.
    std::vector<std::unique_ptr<Arena>> arenas;
    for (std::size_t t = 0; t < workers; ++t) arenas.push_back(take());
    std::atomic<std::size_t> next{begin};
    // Of one thread: no other than the caller's has a check, or starts threads.
    std::exception_ptr failure;
    const auto give_up = [&] {
      failure = std::current_exception();
      next = end;  // the others stop after the image that they are at
    };
    const auto work = [&](Arena* arena) {
      const FloatEnvironment environment;
      const KernelState state(kernel_set(isa));
      Runner runner(ensemble, *arena, turn, request.profiles);
      try {
        for (std::size_t i = next++; i < end; i = next++) {
          runner.run(request, i, image_bytes);
          check_interrupt();
        }
      } catch (...) {
        give_up();
      }
    };
    if (pool.is_given() && workers > 1) pool.run(workers, [&](std::size_t t) { work(arenas[t].get()); });
    else start(arenas, work, give_up);
    for (std::unique_ptr<Arena>& arena : arenas) give_back(std::move(arena));
    if (failure) std::rethrow_exception(failure);
  }

  // Does `work` with each arena: the first on this thread, the others on threads of their own.
  template <typename Work, typename GiveUp>
  void start(const std::vector<std::unique_ptr<Arena>>& arenas, const Work& work, const GiveUp& give_up) {
    std::vector<std::thread> helpers;
    try {
      for (std::size_t t = 1; t < arenas.size(); ++t) helpers.emplace_back(work, arenas[t].get());
    } catch (const std::system_error&) {
      // The system gives no more threads: those there are do all the work.
    } catch (...) {
      give_up();  // out of memory
    }
    if (!arenas.empty()) work(arenas[0].get());
    for (std::thread& helper : helpers) helper.join();
  }

  Isa isa;
  int threads;
  Pool pool;
  Ensemble ensemble;
  Extent image;
  bool takes_floats = true;
  std::optional<Team> team;  // if any step is worth sharing
  std::mutex mutex;
  std::size_t made = 0;  // arenas, at most
  std::vector<std::unique_ptr<Arena>> idle;
};

void check_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) throw std::invalid_argument("threads must be 1 to " + std::to_string(kMaxThreads));
}

Engine::Engine(const std::vector<Network>& networks, Isa isa, int threads, std::chrono::microseconds least_saving, const Pool& pool) {
  check_threads(threads);
  impl_ = std::make_unique<Impl>(networks, isa, threads, least_saving, pool);
}

Engine::~Engine() = default;

std::size_t Engine::networks() const { return impl_->ensemble.networks.size(); }
const Executor& Engine::network(std::size_t index) const { return *impl_->ensemble.networks[index]; }
int Engine::classes() const { return impl_->ensemble.networks.front()->classes; }
int Engine::threads() const { return impl_->threads; }
Isa Engine::isa() const { return impl_->isa; }
const Extent& Engine::image() const { return impl_->image; }
bool Engine::takes_floats() const { return impl_->takes_floats; }

void Engine::run(const RunRequest& request) const {
  const std::size_t threads = impl_->members();
  // The last images, too few for all threads, are shared by them one after the other, if that pays.
  const std::size_t rest = !impl_->team ? 0 : request.profiles ? request.count : request.count % threads;
  impl_->run(request, 0, request.count - rest, nullptr);
  if (rest == 0) return;
  const auto run = [&](const Team::Turn* turn) { impl_->run(request, request.count - rest, request.count, turn); };
  if (!impl_->team->gather([&](const Team::Turn& turn) { run(&turn); })) run(nullptr);
}

}  // namespace fracskip
