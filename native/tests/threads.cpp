// Many threads share one engine, whose own threads or the host's pool share each image's steps, and always get the same answers.
// Built with -fsanitize=thread it also shows that they never race.
//
//   threads FOLDER [rounds]
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <queue>
#include <thread>

#include "support.hpp"

using namespace fracskip;

namespace {

constexpr std::size_t kCallers = 4, kImages = 5;

// Two threads that all callers share, fewer than tasks. Who waits does what is left, of whomever.
class HostPool {
 public:
  HostPool() {
    for (std::thread& thread : threads_) thread = std::thread([this] { serve(); });
  }
  ~HostPool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  static void parallel_for(void* context, std::size_t count, Pool::Task task, void* task_context) {
    HostPool& own = *static_cast<HostPool*>(context);
    std::size_t left = count;  // under the mutex
    std::unique_lock<std::mutex> lock(own.mutex_);
    for (std::size_t k = 0; k < count; ++k) own.tasks_.push({task, task_context, k, &left});
    own.changed_.notify_all();
    while (left > 0) own.step(lock, [&] { return left == 0; });
  }

 private:
  struct Queued {
    Pool::Task task;
    void* context;
    std::size_t index;
    std::size_t* left;
  };

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!over_) step(lock, [&] { return over_; });
  }

  // Does a task, once there is one, unless it is over before.
  void step(std::unique_lock<std::mutex>& lock, const std::function<bool()>& over) {
    changed_.wait(lock, [&] { return over() || !tasks_.empty(); });
    if (over()) return;
    const Queued next = tasks_.front();
    tasks_.pop();
    lock.unlock();
    next.task(next.context, next.index);
    lock.lock();
    --*next.left;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  std::queue<Queued> tasks_;
  std::thread threads_[2];
};

void check(const Networks& networks, Isa isa, int threads, int rounds, const Pool& pool) {
  // Also of steps that are too short for it to pay.
  const Engine engine(networks, isa, threads, std::chrono::microseconds(-1), pool);
  const std::vector<std::uint8_t> images = make_images(engine, kImages);
  const Engine alone(networks, isa, 1);
  std::vector<Answers> expected;
  for (std::size_t count = 1; count <= kImages; ++count) expected.push_back(run(alone, images, count));
  std::atomic<int> different{0};
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < rounds; ++round) {
        // Batches of several sizes, so that callers meet at different places.
        const std::size_t count = 1 + (caller + static_cast<std::size_t>(round)) % kImages;
        different += !(run(engine, images, count) == expected[count - 1]);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  if (different) fault(std::to_string(different) + " runs gave other answers than a single thread");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) fault("threads FOLDER [rounds]");
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 20;
  const std::vector<Networks> bundles = read_bundles(argv[1]);
  HostPool host;
  for (const Networks& networks : bundles) {
    for (const Isa isa : kIsas) {
      if (!isa_supported(isa)) continue;
      for (int threads : {2, 3}) check(networks, isa, threads, rounds, {});
      check(networks, isa, 3, rounds, {HostPool::parallel_for, &host});
    }
  }
  std::printf("%zu bundles, %zu threads, %d rounds each: the same answers\n", bundles.size(),
              kCallers, rounds);
}
