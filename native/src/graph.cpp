#include "graph.hpp"

#include <algorithm>

#include "kernels/kernels.hpp"

namespace fracskip {

const Op* feeder_of(const Program& program, std::size_t at) {
  const Op& op = program[at];
  if (op.kind != OpKind::conv || op.in == 0) return nullptr;
  const Op& feeder = program[static_cast<std::size_t>(op.in) - 1];
  const bool clamped = feeder.act == Act::none || feeder.act == Act::relu || feeder.act == Act::relu6;
  if (feeder.kind != OpKind::conv || !clamped) return nullptr;
  const auto takers = std::count_if(program.begin(), program.end(), [&](const Op& other) { return other.uses(op.in); });
  return takers == 1 ? &feeder : nullptr;
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
