// Which of a worker's buffers activations lie in: one is free again once nothing refers to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan/memory.hpp"

namespace fracskip {

// Where an activation lies: in one of a worker's buffers, in this form.
struct Place {
  int buffer = -1;
  Layout layout;

  bool is_some() const { return buffer >= 0; }
  bool is_levels() const { return layout.element == Element::u8; }
  // Of its pixels, with the channels that pad them.
  std::int64_t bytes() const {
    return is_some() ? static_cast<std::int64_t>(layout.h) * layout.w * layout.pixel * static_cast<std::int64_t>(layout.bytes_each()) : 0;
  }
  // Whether it has no border and no gaps but padded channels, as programs want their values.
  bool is_dense() const {
    return layout.border == 0 && layout.pixel % kBlock == 0 && layout.row == static_cast<std::ptrdiff_t>(layout.w) * layout.pixel;
  }
};

// Hands out buffers while a network is planned.
class PlanMemory {
 public:
  // `clean`: with a border that is 0 already, if it has one.
  Place acquire(const Layout& layout, bool clean);
  void hold(const Place& place) { ++of(place).users; }
  void let_go(const Place& place) {
    if (place.is_some()) --of(place).users;
  }
  int users(const Place& place) { return of(place).users; }
  std::vector<std::size_t> bytes() const;

 private:
  struct Each {
    std::size_t bytes = 0;
    int users = 0;
    bool clean = false;  // has one form, and what lies around its pixels is zero: nobody writes it
    Layout form;
  };

  Each& of(const Place& place) { return buffers_[static_cast<std::size_t>(place.buffer)]; }

  std::vector<Each> buffers_;
};

}  // namespace fracskip
