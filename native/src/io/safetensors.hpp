// Reads safetensors files of F32 and I8 tensors. Tensors are views into the file's bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace fracskip {

struct SafetensorsError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class TensorType { f32, i8 };

struct TensorView {
  TensorType type = TensorType::f32;
  std::vector<std::int64_t> shape;
  const std::uint8_t* data = nullptr;  // little-endian, at any alignment
  std::size_t elements = 0;
};

struct Safetensors {
  std::map<std::string, std::string> metadata;
  std::map<std::string, TensorView> tensors;
  const std::uint8_t* body = nullptr;  // what follows the header
  std::size_t body_bytes = 0;
};

inline constexpr std::size_t kMaxHeaderBytes = std::size_t{16} << 20;
inline constexpr std::int64_t kMaxElements = std::int64_t{1} << 31;  // of one tensor

// Throws SafetensorsError. Tensors must fill the file's body: no gap, no overlap, nothing after.
Safetensors read_safetensors(const std::uint8_t* data, std::size_t size);

const char* type_name(TensorType type);
std::string shape_name(const std::vector<std::int64_t>& shape);

}  // namespace fracskip
