#include "exec/team.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "exec/float_environment.hpp"

namespace fracskip {
namespace {

constexpr std::size_t kMostMembers = 32;  // one bit each
constexpr int kSpins = 2000;  // before a thread lets another one run: some 50 microseconds

void pause(int spins) {
  if (spins >= kSpins) return std::this_thread::yield();
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

long process() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

}  // namespace

// In the upper half of `state` stands the step's number, counted up, in the lower half one bit for each of its shares that is
// taken. Everyone takes the share of its own number if it is left, so that what a core has computed is in its own caches for
// the next step. Nobody starts another step before all shares of the last one are done, so who has taken one may read `step`
// and `memory`.
struct Team::State {
  std::size_t members;
  Isa isa;
  long owner = process();

  std::atomic<std::uint64_t> state{0};
  std::atomic<const Step*> step{nullptr};
  std::atomic<Memory*> memory{nullptr};
  std::atomic<std::size_t> done{0};

  Pool pool;
  std::atomic<bool> taken{false};  // by a caller; no mutex, for within a host's pool the same thread may come again
  std::mutex mutex;
  std::condition_variable wake;
  bool active = false, over = false;  // under `mutex`
  std::atomic<bool> waits{false};     // `active`, to be read between shares
  std::vector<std::thread> threads;

  std::uint32_t all() const { return static_cast<std::uint32_t>((std::uint64_t{1} << members) - 1); }

  // Takes a share of the step at hand, `own` or the next that is left, and does it. Gives whether there was one.
  bool work(std::uint32_t own) {
    std::uint64_t seen = state.load(std::memory_order_acquire);
    for (;;) {
      const std::uint32_t left = ~static_cast<std::uint32_t>(seen) & all();
      if (left == 0) return false;
      std::uint32_t share = own;
      while (!(left >> share & 1)) share = (share + 1) % static_cast<std::uint32_t>(members);
      if (!state.compare_exchange_weak(seen, seen | std::uint64_t{1} << share, std::memory_order_acq_rel)) continue;
      step.load(std::memory_order_relaxed)->run(*memory.load(std::memory_order_relaxed), {share, static_cast<std::uint32_t>(members)});
      done.fetch_add(1, std::memory_order_release);
      return true;
    }
  }

  void run(const Step& what, Memory& where) {
    step.store(&what, std::memory_order_relaxed);
    memory.store(&where, std::memory_order_relaxed);
    done.store(0, std::memory_order_relaxed);
    state.store(((state.load(std::memory_order_relaxed) >> 32) + 1) << 32, std::memory_order_release);
    while (work(0)) {
    }
    for (int spins = 0; done.load(std::memory_order_acquire) < members; ++spins) pause(spins);
  }

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      over = true;
    }
    wake.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void serve(std::uint32_t own) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return active || over; });
        if (over) return;
      }
      help(own);
    }
  }

  // Does shares for as long as steps may come.
  void help(std::uint32_t own) {
    const FloatEnvironment environment;
    const KernelState kernels(kernel_set(isa));
    for (int spins = 0; waits.load(std::memory_order_acquire); ++spins) {
      if (work(own)) spins = 0;
      else pause(spins);
    }
  }

  void set_active(bool now) {
    waits.store(now, std::memory_order_release);
    {
      const std::lock_guard<std::mutex> lock(mutex);
      active = now;
    }
    if (now) wake.notify_all();
  }

  void gather_threads(const std::function<void()>& lead) {
    set_active(true);
    try {
      lead();
    } catch (...) {
      set_active(false);
      throw;
    }
    set_active(false);
  }

  // Who comes first leads: nobody waits for a task that the pool has not begun.
  void gather_pool(const std::function<void()>& lead) {
    std::exception_ptr failure;
    waits = true;
    pool.run(members, [&](std::size_t number) {
      if (number > 0) return help(static_cast<std::uint32_t>(number));
      try {
        lead();
      } catch (...) {
        failure = std::current_exception();
      }
      waits.store(false, std::memory_order_release);
    });
    if (failure) std::rethrow_exception(failure);
  }
};

Team::Team(std::size_t members, Isa isa, const Pool& pool) : state_(std::make_unique<State>()) {
  members = std::min(members, kMostMembers);
  state_->members = members;
  state_->isa = isa;
  state_->pool = pool;
  state_->state = state_->all();  // nothing to be done
  if (pool.is_given()) return;
  try {
    state_->threads.reserve(members - 1);
    for (std::size_t t = 1; t < members; ++t) {
      state_->threads.emplace_back([state = state_.get(), t] { state->serve(static_cast<std::uint32_t>(t)); });
    }
  } catch (const std::system_error&) {
    // The system gives no more threads: those there are do all the work.
  } catch (...) {
    state_->stop();  // out of memory
    throw;
  }
}

Team::~Team() {
  if (state_->owner != process()) {  // its threads are in another one, and nobody could wait for them
    state_.release();
    return;
  }
  state_->stop();
}

std::size_t Team::members() const { return state_->members; }

bool Team::gather(const std::function<void(const Turn&)>& lead) {
  State& state = *state_;
  if (state.taken.exchange(true, std::memory_order_acquire)) return false;
  struct Return {
    ~Return() { taken.store(false, std::memory_order_release); }
    std::atomic<bool>& taken;
  } const at_end{state.taken};
  const auto own = [&] { lead(Turn(*this)); };
  if (state.pool.is_given()) state.gather_pool(own);
  else state.gather_threads(own);
  return true;
}

void Team::Turn::run(const Step& step, Memory& memory) const { team_.state_->run(step, memory); }

}  // namespace fracskip
