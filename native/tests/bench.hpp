// Times what the kernels of this CPU take.
#pragma once

namespace fracskip {

// Prints a line each; `widths_alone`: 3x3 convolutions of stride 1 at every width.
void bench_all(bool widths_alone);

}  // namespace fracskip
