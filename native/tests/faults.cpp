// What a run must stand: memory that ends at any of its allocations, and a host that has changed the float environment.
//
//   faults FOLDER
#include <cfenv>
#include <limits>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "exec/float_environment.hpp"
#include "support.hpp"

namespace {

// Allocations of this thread that still succeed; negative: all.
thread_local long allocations_left = -1;

}  // namespace

void* operator new(std::size_t size) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace fracskip {
namespace {

constexpr std::size_t kImages = 7;  // the last one is shared by the threads
constexpr int kThreads = 3;

// Without memory for one more allocation the run ends with bad_alloc, its threads have ended, and the engine does
// what it did before. Gives the number of allocations.
int check_memory(const Networks& networks) {
  const Engine alone(networks, Isa::automatic, 1);
  const std::vector<std::uint8_t> images = make_images(alone, kImages);
  const Answers expected = run(alone, images, kImages);
  const Engine engine(networks, Isa::automatic, kThreads, std::chrono::microseconds(-1));
  for (int allocations = 0;; ++allocations) {
    Call call(engine, images, kImages);
    bool failed = false;
    allocations_left = allocations;
    try {
      engine.run(call.request);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_left = -1;
    if (!(run(engine, images, kImages) == expected)) fault("a run after one that failed gives other answers");
    if (failed) continue;
    if (!(call.answers == expected)) fault("a run with little memory gives other answers");
    return allocations;
  }
}

// Whether results below the smallest normal number become 0: a bit of the processor's register that C++ has no name for.
void set_flush([[maybe_unused]] bool on) {
#if defined(__x86_64__)
  constexpr unsigned kFlush = 0x8040;  // results, and inputs
  _mm_setcsr(on ? _mm_getcsr() | kFlush : _mm_getcsr() & ~kFlush);
#elif defined(__aarch64__)
  constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;
  std::uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  control = on ? control | kFlush : control & ~kFlush;
  asm volatile("msr fpcr, %0" : : "r"(control));
#endif
}

bool flushes() {
  volatile float smallest = std::numeric_limits<float>::min(), half = 0.5f;
  return smallest * half == 0.f;
}

// Whatever the host has set does not reach the kernels, and is there again afterwards.
void check_floats(const Networks& networks) {
  const Engine engine(networks, Isa::automatic, 2, std::chrono::microseconds(-1));
  const std::vector<std::uint8_t> images = make_images(engine, kImages);
  const Answers expected = run(engine, images, kImages);
  for (const int rounding : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST}) {
    for (const bool flush : {false, true}) {
      std::fesetround(rounding);
      set_flush(flush);
      const bool flushed = flushes();
      bool sound;
      {
        const FloatEnvironment environment;
        sound = !flushes() && std::fegetround() == FE_TONEAREST;
      }
      const Answers found = run(engine, images, kImages);
      const bool kept = std::fegetround() == rounding && flushes() == flushed;
      set_flush(false);
      std::fesetround(FE_TONEAREST);
      if (!sound) fault("kernels would see the host's float environment");
      if (!(found == expected)) fault("the host's float environment changes answers");
      if (!kept) fault("a run leaves another float environment behind");
    }
  }
}

}  // namespace
}  // namespace fracskip

int main(int argc, char** argv) {
  using namespace fracskip;
  if (argc < 2) fault("faults FOLDER");
  int allocations = 0;
  for (const Networks& networks : read_bundles(argv[1])) {
    allocations += check_memory(networks);
    check_floats(networks);
  }
  if (allocations < kThreads) fault("threads were started without memory");
  std::printf("%d failed allocations, 8 float environments: the same answers\n", allocations);
}
