#include "operating/prices.hpp"

#include "plan/network.hpp"

namespace fracskip {

Prices::Prices(const Manifest& manifest) : several_(manifest.cascade.has_value()) {
  const double unit = several_ ? manifest.networks[manifest.cascade->members.back().network].profile.backbone : 1.0;
  for (const NetworkManifest& network : manifest.networks) {
    Own own;
    for (const double branch : network.profile.branches) {
      own.blocks.emplace_back();
      for (const int bits : network.option_bits) {
        const double share = bits / static_cast<double>(kFullBits);
        own.blocks.back().push_back(share * share * (several_ ? branch / unit : 1.0));
      }
    }
    if (several_) {
      own.fixed = network.profile.fixed / unit;
      // A static network starts anew.
      own.repeated = network.gated ? network.profile.repeated / unit : own.fixed;
    }
    networks_.push_back(own);
  }
}

float Prices::of(const std::vector<Executed>& members) const {
  double total = 0.0;
  float shares = 0.f;
  for (std::size_t k = 0; k < members.size(); ++k) {
    const Own& own = networks_[members[k].network];
    double sum = 0.0;
    for (std::size_t b = 0; b < own.blocks.size(); ++b) sum += own.blocks[b][members[k].decisions[b]];
    // Shares are multiples of 2^-10, so their sum is exact.
    shares += own.blocks.empty() ? 1.f : static_cast<float>(sum) / static_cast<float>(own.blocks.size());
    total += sum + (k > 0 && members[k - 1].network == members[k].network ? own.repeated : own.fixed);
  }
  return several_ ? static_cast<float>(total) : shares;
}

}  // namespace fracskip
