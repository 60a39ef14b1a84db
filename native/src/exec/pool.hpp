// Threads of the host program's.
#pragma once

#include <cstddef>
#include <functional>

namespace fracskip {

// A function of the host's that calls `task(task_context, k)` once for each k below `count`, on whatever threads, one after
// the other or at the same time, and returns when all calls have returned.
class Pool {
 public:
  using Task = void (*)(void* task_context, std::size_t index);
  using ParallelFor = void (*)(void* context, std::size_t count, Task task, void* task_context);

  Pool() = default;  // none
  Pool(ParallelFor parallel_for, void* context) : parallel_for_(parallel_for), context_(context) {}

  bool is_given() const { return parallel_for_ != nullptr; }

  // Has it call `work`, each call with a number of its own below `count`, in the order in which they begin. None may wait for
  // another to begin, and none may throw. Throws std::invalid_argument where there were more calls, or fewer.
  void run(std::size_t count, const std::function<void(std::size_t)>& work) const;

 private:
  ParallelFor parallel_for_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace fracskip
