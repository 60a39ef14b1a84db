// Makes bundles of version 2 with programs of every kind.
#pragma once

#include "mutate.hpp"

namespace fracskip {

// A valid bundle, small enough to be run thousands of times.
Bytes random_graph(Random& random);

}  // namespace fracskip
