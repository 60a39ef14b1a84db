// Many threads share one engine, whose own threads share each image's steps, and always get the same answers.
// Built with -fsanitize=thread it also shows that they never race.
//
//   threads FOLDER [rounds]
#include <atomic>
#include <thread>

#include "support.hpp"

using namespace fracskip;

namespace {

constexpr std::size_t kCallers = 4, kImages = 5;

void check(const Networks& networks, Isa isa, int threads, int rounds) {
  // Also of steps that are too short for it to pay.
  const Engine engine(networks, isa, threads, std::chrono::microseconds(-1));
  const std::vector<std::uint8_t> images = make_images(engine, kImages);
  const Engine alone(networks, isa, 1);
  std::vector<Answers> expected;
  for (std::size_t count = 1; count <= kImages; ++count) expected.push_back(run(alone, images, count));
  std::atomic<int> different{0};
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < rounds; ++round) {
        // Batches of several sizes, so that callers meet at different places.
        const std::size_t count = 1 + (caller + static_cast<std::size_t>(round)) % kImages;
        different += !(run(engine, images, count) == expected[count - 1]);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  if (different) fault(std::to_string(different) + " runs gave other answers than a single thread");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) fault("threads FOLDER [rounds]");
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 20;
  const std::vector<Networks> bundles = read_bundles(argv[1]);
  for (const Networks& networks : bundles) {
    for (const Isa isa : kIsas) {
      if (!isa_supported(isa)) continue;
      for (int threads : {2, 3}) check(networks, isa, threads, rounds);
    }
  }
  std::printf("%zu bundles, %zu threads, %d rounds each: the same answers\n", bundles.size(),
              kCallers, rounds);
}
