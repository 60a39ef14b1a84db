// Reads a bundle (docs/bundle.md). Trusts nothing: every size, offset, type and value is checked
// before it is used, and the digest is the caller's to verify.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <variant>

#include "plan/graph.hpp"
#include "plan/network.hpp"

namespace fracskip {

struct BundleError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of version 1, or 2.
using AnyNetwork = std::variant<Network, GraphNetwork>;

inline const Frame& frame_of(const AnyNetwork& network) {
  return std::visit([](const Frame& frame) -> const Frame& { return frame; }, network);
}

// Throws BundleError with a message that says what is wrong.
AnyNetwork read_bundle(const std::uint8_t* data, std::size_t size);

}  // namespace fracskip
