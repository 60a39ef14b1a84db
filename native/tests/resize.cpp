#include "resize.hpp"

#include <cstdio>
#include <cstdint>
#include <random>
#include <vector>

#include "exec/resize.hpp"
#include "kernels/common/isa.hpp"

namespace fracskip {

// Images, results and scratch of exactly the size that they need: one byte beyond is a sanitizer's report.
int check_resizing(int rounds) {
  std::mt19937_64 random(7);
  const auto below = [&](int count) { return static_cast<int>(random() % static_cast<unsigned>(count)); };
  int checks = 0;
  for (int round = 0; round < rounds; ++round) {
    const int from_h = 1 + below(60), from_w = 1 + below(round % 8 ? 60 : 300), channels = 1 + below(4);
    const int h = 1 + below(from_h), w = 1 + below(from_w);
    std::vector<std::uint8_t> image(static_cast<std::size_t>(from_h) * from_w * channels);
    for (std::uint8_t& pixel : image) pixel = static_cast<std::uint8_t>(round % 3 ? random() : random() % 2 * 255);
    const auto resized = [&](Isa isa) {
      const Resizer resizer(from_h, from_w, h, w, channels, *kernel_set(isa).resize);
      std::vector<std::uint8_t> out(resizer.bytes(), 99), scratch(resizer.scratch_bytes());
      resizer.run(image.data(), out.data(), scratch.data());
      return out;
    };
    const std::vector<std::uint8_t> expected = resized(Isa::scalar);
    for (const Isa isa : kIsas) {
      if (!isa_supported(isa)) continue;
      if (resized(isa) != expected) {
        std::printf("%d by %d to %d by %d, %d channels, %s: other pixels than plain code's\n", from_h, from_w, h, w, channels, isa_name(isa));
        return 1;
      }
      ++checks;
    }
  }
  std::printf("%d resized images agree\n", checks);
  return 0;
}

}  // namespace fracskip
