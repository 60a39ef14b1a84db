// SHA-256 (FIPS 180-4), for a bundle's digest.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace fracskip {

class Sha256 {
 public:
  Sha256();

  void update(const void* data, std::size_t size);
  void update(const std::string& text) { update(text.data(), text.size()); }

  // Of all that came, as 64 hexadecimal digits. Nothing may come after.
  std::string hex();

 private:
  void block(const std::uint8_t* bytes);

  std::array<std::uint32_t, 8> state_;
  std::array<std::uint8_t, 64> held_{};  // what does not fill a block yet
  std::uint64_t size_ = 0;               // of all that came, in bytes
};

}  // namespace fracskip
