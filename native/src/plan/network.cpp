#include "plan/network.hpp"

#include "kernels/common/kernels.hpp"

namespace fracskip {

std::vector<std::vector<std::size_t>> takers_of(const Program& program) {
  std::vector<std::vector<std::size_t>> takers(program.size() + 1);
  for (std::size_t k = 0; k < program.size(); ++k) {
    const Op& op = program[k];
    takers[static_cast<std::size_t>(op.in)].push_back(k);
    if (op.takes_two() && op.other != op.in) takers[static_cast<std::size_t>(op.other)].push_back(k);
  }
  return takers;
}

std::vector<const Op*> feeders_of(const Program& program) {
  const std::vector<std::vector<std::size_t>> takers = takers_of(program);
  std::vector<const Op*> feeders;
  for (const Op& op : program) {
    const Op* found = nullptr;
    if (op.kind == OpKind::conv && op.in > 0 && takers[static_cast<std::size_t>(op.in)].size() == 1) {
      const Op& feeder = program[static_cast<std::size_t>(op.in) - 1];
      const bool clamped = feeder.act == Act::none || feeder.act == Act::relu || feeder.act == Act::relu6;
      if (feeder.kind == OpKind::conv && clamped) found = &feeder;
    }
    feeders.push_back(found);
  }
  return feeders;
}

Grouping grouping_of(const Op& op) {
  Grouping grouping;
  const int taken = op.taken / op.groups, given = op.given / op.groups;
  while (grouping.together < op.groups &&
         (grouping.together * taken % kBlock != 0 || grouping.together * given % kBlock != 0)) {
    ++grouping.together;
  }
  grouping.pieces = (op.groups + grouping.together - 1) / grouping.together;
  return grouping;
}

}  // namespace fracskip
