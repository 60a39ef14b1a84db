// Files as they lie on disk.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fracskip {

struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A path for a message: whole, and on one line.
std::string shown(const std::string& path);

// A bundle's bytes, of a regular file: no device, pipe or socket, which might never end. Throws FileError.
std::vector<std::uint8_t> read_file(const std::string& path);

}  // namespace fracskip
