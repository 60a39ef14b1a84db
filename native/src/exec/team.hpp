// Threads that share the steps of one image.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "exec/pool.hpp"
#include "kernels/common/isa.hpp"
#include "plan/plan.hpp"

namespace fracskip {

// A step is cut into as many shares as the team has members; whoever is free takes the next one. A thread that the system does
// not run at the moment is thus not waited for: the others do its share. So it is after a fork, too, where the threads are
// missing, and in a host's pool that calls its tasks one after the other.
class Team {
 public:
  // Of so many members: the caller and threads that stay, or tasks of the host's pool. There are fewer threads where the
  // system gives no more.
  Team(std::size_t members, Isa isa, const Pool& pool = {});
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  std::size_t members() const;

  // A member's, while the others wait for steps without sleeping.
  class Turn {
   public:
    void run(const Step& step, Memory& memory) const;  // the same as step.run(memory)

   private:
    friend class Team;
    explicit Turn(Team& team) : team_(team) {}

    Team& team_;
  };

  // Calls `lead` on this thread, or on one of the pool's. Of several callers at once one gets the team; the others get false.
  // Throws what `lead` throws, and what Pool::run does.
  bool gather(const std::function<void(const Turn&)>& lead);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fracskip
