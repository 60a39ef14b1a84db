// NumPy arrays as the bindings take them: checked before a pointer to their values is handed on.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace nb = nanobind;

namespace fracskip {

using Readable = nb::ndarray<nb::ro, nb::device::cpu>;
using Writable = nb::ndarray<nb::device::cpu>;

inline std::string shape_text(const std::vector<std::size_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

template <typename Array>
std::vector<std::size_t> shape_of(const Array& array) {
  std::vector<std::size_t> shape;
  for (std::size_t i = 0; i < array.ndim(); ++i) shape.push_back(array.shape(i));
  return shape;
}

template <typename Array>
bool is_contiguous(const Array& array) {
  if (array.size() == 0) return true;
  std::int64_t expected = 1;
  for (std::size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.stride(i) != expected) return false;
    expected *= static_cast<std::int64_t>(array.shape(i));
  }
  return true;
}

template <typename T, typename Array>
bool holds(const Array& array) {
  return array.dtype() == nb::dtype<T>();
}

// Refuses what is not a C-contiguous array of T in that shape.
template <typename T, typename Array>
auto* checked(const std::string& name, const Array& array, const std::vector<std::size_t>& shape) {
  if (!holds<T>(array)) {
    const char* type = std::is_same_v<T, float> ? "float32" : "uint8";
    throw nb::type_error((name + " must be " + type).c_str());
  }
  if (shape_of(array) != shape) {
    throw std::invalid_argument(name + " has shape " + shape_text(shape_of(array)) +
                                ", it must be " + shape_text(shape));
  }
  if (!is_contiguous(array)) {
    throw std::invalid_argument(name + " must be C-contiguous");
  }
  using Held = std::remove_pointer_t<decltype(array.data())>;
  return static_cast<std::conditional_t<std::is_const_v<Held>, const T*, T*>>(array.data());
}

}  // namespace fracskip
