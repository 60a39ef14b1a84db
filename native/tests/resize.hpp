// Holds the resizing kernels of this CPU to the plain loops, to the bit.
#pragma once

namespace fracskip {

int check_resizing(int rounds);  // 0 if they agree

}  // namespace fracskip
