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

void check(const Network& network, int rounds) {
  const std::vector<std::uint8_t> images = make_images(network, kImages);
  const Answers expected = run(Engine(network, Isa::automatic, 1), network, images, kImages);
  const Engine engine(network, Isa::automatic, 2);
  std::atomic<int> different{0};
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < rounds; ++round) {
        // Batches of several sizes, so that callers meet at different places.
        const std::size_t count = 1 + (caller + static_cast<std::size_t>(round)) % kImages;
        Answers answers = run(engine, network, images, count);
        Answers wanted = expected;
        wanted.logits.resize(answers.logits.size());
        wanted.decisions.resize(answers.decisions.size());
        different += !(answers == wanted);
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
  const std::vector<Network> networks = read_networks(argv[1]);
  for (const Network& network : networks) check(network, rounds);
  std::printf("%zu networks, %zu threads, %d rounds each: the same answers\n", networks.size(),
              kCallers, rounds);
}
