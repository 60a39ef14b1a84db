// Makes bundles with programs of every kind.
#pragma once

#include "mutate.hpp"

namespace fracskip {

// A valid bundle, small enough to be run thousands of times.
Bytes random_network(Random& random);

}  // namespace fracskip
