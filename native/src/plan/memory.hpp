// Aligned memory and activation images.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels/common/kernels.hpp"

namespace fracskip {

inline constexpr std::size_t kAlignment = 64;
inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Zeroed bytes on a cache line's boundary; large ones on huge pages where the system has them
// (megabytes of weights in 4 KiB pages miss the TLB at every turn).
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    const std::size_t alignment = bytes >= kHugePage / 2 ? kHugePage : kAlignment;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    data_.reset(std::aligned_alloc(alignment, rounded));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
    std::memset(data_.get(), 0, rounded);
  }

  template <class T>
  T* as() { return static_cast<T*>(data_.get()); }
  template <class T>
  const T* as() const { return static_cast<const T*>(data_.get()); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t size_ = 0;
};

// Values with room for so many, zeros beyond them.
inline Buffer padded(const float* values, int count, int room) {
  Buffer buffer(sizeof(float) * static_cast<std::size_t>(room));
  std::copy_n(values, count, buffer.as<float>());
  return buffer;
}

// How an activation lies in memory: NHWC with a border of zeros, channels padded to a multiple of so many. Below and to the right the border
// also covers what is missing to whole Winograd tiles. Rows are whole cache lines.
struct Layout {
  int h = 0, w = 0, c = 0;
  int border = 0;
  Element element = Element::u8;
  int pixel = 0;           // elements from pixel to pixel
  std::ptrdiff_t row = 0;  // elements from row to row

  static Layout make(int h, int w, int c, int border, Element element, int multiple = kBlock) {
    Layout l;
    l.h = h;
    l.w = w;
    l.c = c;
    l.border = border;
    l.element = element;
    l.pixel = round_up(c, multiple);
    const auto line = static_cast<std::ptrdiff_t>(kAlignment / l.bytes_each());
    l.row = static_cast<std::ptrdiff_t>(2 * border + round_up(w, kTile)) * l.pixel;
    if (multiple > 1) l.row = (l.row + line - 1) / line * line;
    return l;
  }

  // Without a border and without gaps: one long row of pixels, that is.
  static Layout dense(int h, int w, int c, Element element) {
    Layout l = make(h, w, c, 0, element);
    l.row = static_cast<std::ptrdiff_t>(w) * l.pixel;
    return l;
  }

  std::size_t bytes_each() const { return size_of(element); }
  // A few pixels more, so that vectors and tiles may read past the last one.
  std::size_t bytes() const {
    const auto rows = static_cast<std::size_t>(2 * border + round_up(h, kTile));
    const int more = element == Element::f32 ? 4 * round_up(pixel, kBlock) : tile_read_ahead(pixel);
    return (rows * static_cast<std::size_t>(row) + static_cast<std::size_t>(more)) * bytes_each();
  }
  std::ptrdiff_t origin() const { return border * (row + pixel); }

  bool operator==(const Layout& o) const {
    return h == o.h && w == o.w && c == o.c && border == o.border && element == o.element && pixel == o.pixel;
  }
};

}  // namespace fracskip
