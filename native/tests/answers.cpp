// What every instruction set of this processor answers, as text: for builds that run elsewhere to be compared with.
//
//   answers FOLDER [images [set option]]
//
// One line a bundle, set and kind: number, set, `free` or `forced`, decisions and a dash, logits (the bits of float32), in
// hexadecimal digits; then the kernels that each set's plans name, and the set that is taken where none is named. With a set and an option's number: nothing but that set's
// answers at that option of every block.
#include <cstring>
#include <random>
#include <set>

#include "kernels/common/isa.hpp"
#include "support.hpp"

using namespace fracskip;

namespace {

void print(std::size_t bundle, Isa isa, const char* kind, const Answers& answers) {
  std::printf("%zu %s %s ", bundle, isa_name(isa), kind);
  for (const auto& member : answers.decisions) {
    for (const std::uint8_t decision : member) std::printf("%02x", decision);
  }
  std::printf("- ");  // static networks decide nothing
  for (const float logit : answers.logits) {
    std::uint32_t bits;
    std::memcpy(&bits, &logit, sizeof bits);
    std::printf("%08x", bits);
  }
  std::printf("\n");
}

// Decisions that are drawn.
std::vector<std::uint8_t> draw(const Executor& network, std::size_t count) {
  std::mt19937 random(1);
  std::vector<std::uint8_t> forced;
  for (std::size_t i = 0; i < count; ++i) {
    for (const int first : network.first_options) {
      forced.push_back(static_cast<std::uint8_t>(first + static_cast<int>(random() % static_cast<unsigned>(network.options() - first))));
    }
  }
  return forced;
}

// A network by itself.
Answers run_forced(const Engine& engine, std::size_t index, const std::vector<std::uint8_t>& images, std::size_t count, const std::vector<std::uint8_t>& forced) {
  Call call(engine, images, count);
  Answers& answers = call.answers;
  answers.decisions.assign(1, std::vector<std::uint8_t>(forced.size(), 255));
  Member member;
  member.network = index;
  member.decisions = answers.decisions[0].data();
  call.request.chain = {member};
  call.request.forced = forced.data();
  engine.run(call.request);
  return answers;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) fault("answers FOLDER [images]");
  const std::size_t count = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 8;
  const std::vector<Networks> bundles = read_bundles(argv[1]);
  for (const Isa isa : kIsas) {
    if (!isa_supported(isa)) continue;
    if (argc > 4) {
      if (std::strcmp(argv[3], isa_name(isa)) != 0) continue;
      const Engine engine(bundles[0], isa, 1);
      const auto blocks = static_cast<std::size_t>(engine.network(0).gated_blocks());
      const std::vector<std::uint8_t> forced(count * blocks, static_cast<std::uint8_t>(std::strtoul(argv[4], nullptr, 10)));
      print(0, isa, "forced", run_forced(engine, 0, make_images(engine, count), count, forced));
      continue;
    }
    std::set<std::string> kernels;
    for (std::size_t b = 0; b < bundles.size(); ++b) {
      const Engine engine(bundles[b], isa, 1);
      const std::vector<std::uint8_t> images = make_images(engine, count);
      print(b, isa, "free", run(engine, images, count));
      for (std::size_t k = 0; k < engine.networks(); ++k) {
        print(b, isa, "forced", run_forced(engine, k, images, count, draw(engine.network(k), count)));
        for (const KernelInfo& info : engine.network(k).kernel_infos()) kernels.insert(info.kernels.begin(), info.kernels.end());
      }
    }
    std::printf("kernels %s", isa_name(isa));
    for (const std::string& name : kernels) std::printf(" %s", name.c_str());
    std::printf("\n");
  }
  std::printf("best %s\n", isa_name(best_isa()));
}
