// Reads what a bundle says besides what engines execute, for those who leave it to this library to operate them.
#pragma once

#include <vector>

#include "io/bundle_field.hpp"
#include "plan/manifest.hpp"
#include "plan/network.hpp"

namespace fracskip {

// Of a plan whose networks were read. Throws BundleError. The digest is left empty.
Manifest read_manifest(const Field& root, const std::vector<Network>& networks);

}  // namespace fracskip
