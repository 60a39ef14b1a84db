#include "exec/pool.hpp"

#include <atomic>
#include <stdexcept>
#include <string>

namespace fracskip {
namespace {

struct Calls {
  const std::function<void(std::size_t)>& work;
  std::size_t count;
  std::atomic<std::size_t> begun{0}, ended{0};
};

// The host's index is not used: nothing depends on whether it is right.
void call(void* given, std::size_t) {
  Calls& calls = *static_cast<Calls*>(given);
  const std::size_t number = calls.begun++;
  if (number < calls.count) calls.work(number);
  ++calls.ended;
}

}  // namespace

void Pool::run(std::size_t count, const std::function<void(std::size_t)>& work) const {
  Calls calls{work, count};
  parallel_for_(context_, count, call, &calls);
  if (calls.ended == count) return;
  throw std::invalid_argument("parallel_for was given " + std::to_string(count) + " tasks and had called " + std::to_string(calls.ended) +
                              " when it returned: it must call the task once for each index and return when all calls have returned");
}

}  // namespace fracskip
