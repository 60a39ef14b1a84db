// Reads a bundle (docs/bundle.md). Assumes nothing: every size, offset, type and value is checked
// before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "plan/manifest.hpp"
#include "plan/network.hpp"

namespace fracskip {

struct BundleError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline constexpr std::size_t kMaxNetworks = 4;

// The networks of a bundle: one, or those of a cascade, for callers who have read the rest of it and verified its digest.
// Throws BundleError with a message that says what is wrong.
std::vector<Network> read_bundle(const std::uint8_t* data, std::size_t size);

struct WholeBundle {
  std::vector<Network> networks;
  Manifest manifest;
};

enum class Digest { verified, ignored };

// All that a bundle says, for callers who hold nothing but its bytes. Throws BundleError.
WholeBundle read_whole_bundle(const std::uint8_t* data, std::size_t size, Digest digest = Digest::verified);

}  // namespace fracskip
