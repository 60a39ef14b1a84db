// Threads that share the steps of one image.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/common/isa.hpp"
#include "plan/plan.hpp"

namespace fracskip {

// A caller and some threads that stay. A step is cut into as many shares as the team has members; whoever is free takes the
// next one. A thread that the system does not run at the moment is thus not waited for: the others do its share. So it is
// after a fork, too, where the threads are missing.
class Team {
 public:
  // Of so many members, the caller counted. There are fewer threads where the system gives no more.
  Team(std::size_t members, Isa isa);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  std::size_t members() const;

  // While it lives the threads wait for steps without sleeping. Of several callers at once one gets them.
  class Turn {
   public:
    explicit Turn(Team* team);  // null: nobody gets them
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    bool is_given() const { return team_ != nullptr; }
    void run(const Step& step, Memory& memory) const;  // the same as step.run(memory)

   private:
    Team* team_;
  };

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fracskip
