// One image's way through the members of a chain.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "exec/engine.hpp"
#include "exec/executor.hpp"
#include "exec/gates.hpp"

namespace fracskip {

using Executors = std::vector<std::unique_ptr<const Executor>>;

// One thread's memory, for every network of an engine.
struct Arena {
  explicit Arena(const Executors& executors);

  struct Own {
    Worker worker;
    GateState gate;
  };
  std::vector<Own> networks;
};

class Runner {
 public:
  Runner(const Executors& executors, Arena& arena) : executors_(executors), arena_(arena) {}

  // Image `index` of a request, whose images have so many bytes.
  void run(const RunRequest& request, std::size_t index, std::size_t image_bytes);

 private:
  void begin(const RunRequest& request, std::size_t index, std::size_t image_bytes, std::size_t position);
  void member(const RunRequest& request, std::size_t index, const Member& member);
  bool repeats(const RunRequest& request, std::size_t position) const;

  const Executors& executors_;
  Arena& arena_;
};

}  // namespace fracskip
