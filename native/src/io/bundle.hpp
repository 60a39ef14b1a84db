// Reads a bundle (docs/bundle.md). Trusts nothing: every size, offset, type and value is checked
// before it is used, and the digest is the caller's to verify.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "plan/network.hpp"

namespace fracskip {

struct BundleError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws BundleError with a message that says what is wrong.
Network read_bundle(const std::uint8_t* data, std::size_t size);

}  // namespace fracskip
