// What an image costs by what was executed for it; see `fracskip.cost`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan/manifest.hpp"

namespace fracskip {

// What a member executed for one image.
struct Executed {
  std::size_t network;
  const std::uint8_t* decisions;
};

class Prices {
 public:
  explicit Prices(const Manifest& manifest);

  // Of a network: (bits / 32)², the mean over its gated blocks, of all members together. Of a cascade: BitOps over those of
  // the last member's network at 32 bits.
  float of(const std::vector<Executed>& members) const;

 private:
  struct Own {
    double fixed = 0.0, repeated = 0.0;  // whatever is chosen, and where the network follows itself
    std::vector<std::vector<double>> blocks;  // what each option adds
  };

  bool several_;
  std::vector<Own> networks_;
};

}  // namespace fracskip
