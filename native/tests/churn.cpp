// A thousand engines are made, used and destroyed; memory must not grow.
//
//   churn FOLDER [engines]
#include <unistd.h>

#include "support.hpp"

using namespace fracskip;

namespace {

constexpr double kMostGrowth = 5e6;  // bytes
constexpr std::size_t kImages = 2;

double resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  double size = 0.0, resident = -1.0;
  statm >> size >> resident;
  if (resident < 0.0) fault("/proc/self/statm cannot be read");
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) fault("churn FOLDER [engines]");
  const int engines = argc > 2 ? std::atoi(argv[2]) : 1000;
  const std::vector<Networks> bundles = read_bundles(argv[1]);
  double before = 0.0;
  for (int i = 0; i < engines; ++i) {
    // The first ones fill the allocator's own stores.
    if (i == engines / 10) before = resident_bytes();
    const Engine engine(bundles[static_cast<std::size_t>(i) % bundles.size()], Isa::automatic, 1 + i % 2);
    run(engine, make_images(engine, kImages), kImages);
  }
  const double growth = resident_bytes() - before;
  std::printf("{\"engines\": %d, \"growth_bytes\": %.0f}\n", engines, growth);
  if (growth > kMostGrowth) fault("memory grows");
}
