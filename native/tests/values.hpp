// Holds the kernels of graphs' values to plain loops over docs/bundle.md, on every instruction set of this CPU.
#pragma once

namespace fracskip {

// Prints what is off; gives the number of failures.
int check_values(int rounds);

}  // namespace fracskip
