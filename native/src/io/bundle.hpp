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

// The networks of a bundle: one, or those of a cascade, up to kMaxNetworks. Throws BundleError with a message that says
// what is wrong.
inline constexpr std::size_t kMaxNetworks = 4;
std::vector<Network> read_bundle(const std::uint8_t* data, std::size_t size);

}  // namespace fracskip
