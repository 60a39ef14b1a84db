// Holds what is proved of weights for Winograd's algorithm in bytes to its limits.
#pragma once

namespace fracskip {

// How many kernels were others than they should be, or came to other integers.
int check_bytes();

}  // namespace fracskip
