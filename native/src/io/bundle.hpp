// Reads a bundle (docs/bundle.md). Trusts nothing: every size, offset, type and value is checked
// before it is used, and the digest is the caller's to verify.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "plan/network.hpp"

namespace fracskip {

struct BundleError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline constexpr std::size_t kMaxNetworks = 4;

// The networks of a bundle: one, or those of a cascade. Throws BundleError with a message that says what is wrong.
std::vector<Network> read_bundle(const std::uint8_t* data, std::size_t size);

}  // namespace fracskip
