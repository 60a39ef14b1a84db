// Many threads share one engine, which has threads of its own, and always get the same answers.
// Built with -fsanitize=thread it also shows that they never race.
//
//   threads FOLDER [rounds]
#include <atomic>
#include <thread>

#include "support.hpp"

using namespace fracskip;

namespace {

constexpr std::size_t kCallers = 4, kImages = 5;

void check(const Networks& networks, int rounds) {
  const Engine engine(networks, Isa::automatic, 2);
  const std::vector<std::uint8_t> images = make_images(engine, kImages);
  const Engine alone(networks, Isa::automatic, 1);
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
  for (const Networks& networks : bundles) check(networks, rounds);
  std::printf("%zu bundles, %zu threads, %d rounds each: the same answers\n", bundles.size(),
              kCallers, rounds);
}
