// Makes damaged bundles of good ones, knowing a bundle's format.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace fracskip {

using Bytes = std::vector<std::uint8_t>;
// Numbers are taken by remainder: the library's distributions differ between compilers.
using Random = std::mt19937_64;

enum class Mutation {
  truncate,
  flip_bits,
  splice,
  header_length,
  plan_number,
  plan_node,
  plan_text,
  plan_shape,
  table_number,
  table_node,
  deep_json,
  values,
  grid,
};
inline constexpr int kMutations = 13;

const char* mutation_name(Mutation mutation);

// What is no bundle any more is damaged byte by byte.
Bytes mutate(const Bytes& bundle, Mutation mutation, Random& random);

}  // namespace fracskip
