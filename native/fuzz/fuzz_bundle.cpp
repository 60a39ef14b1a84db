// Feeds the reader damaged bundles, the engine those that are accepted, and the operator those that say how they are to be
// operated. Any crash, sanitizer report, or exception other than BundleError is a bug.
//
//   fuzz_bundle --seeds FOLDER --count 20000 --seed 1 [--json FILE]      (deterministic)
//   fuzz_bundle_libfuzzer [libFuzzer's options] CORPUS
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/bundle.hpp"
#include "exec/engine.hpp"
#include "generate.hpp"
#include "mutate.hpp"
#include "operating/session.hpp"

namespace fracskip {
namespace {

constexpr double kMostMacs = 2e7;    // per image; larger networks are read and not run
constexpr double kMostBytes = 64e6;  // of activations

enum class Outcome { refused, too_large, ran, operated };  // the last two are both run
[[maybe_unused]] constexpr int kOutcomes = 4;

// MACs of one image with every option executed, and the bytes of all activations.
struct Work {
  double macs = 0.0, bytes = 0.0;
};

Work work_of(const Network& network) {
  Work work;
  struct Extent {
    double c, h, w;
  };
  const auto follow = [&](const Program& program, Extent in, double times) {
    std::vector<Extent> values = {in};
    for (const Op& op : program) {
      Extent out = values[static_cast<std::size_t>(op.in)];
      const Window window = op.reach();
      work.bytes += 5.0 * std::max(out.c, 16.0) * (out.h + 2.0 * window.widest_pad()) * (out.w + 2.0 * window.widest_pad());
      double taps = 1.0;
      if (op.kind == OpKind::conv || op.kind == OpKind::pool) {
        out.h = window.out_h(static_cast<int>(out.h));
        out.w = window.out_w(static_cast<int>(out.w));
        taps = static_cast<double>(op.window.kernel_h) * op.window.kernel_w;
      }
      if (op.kind == OpKind::conv) {
        taps *= std::min(16.0 * op.taken / op.groups, static_cast<double>(op.taken));
        out.c = op.given;
        work.bytes += 4.0 * times * taps * std::max(op.given, 16);
      }
      if (op.kind == OpKind::mean) out.h = out.w = 1.0;
      work.macs += times * taps * out.h * out.w * std::max(out.c, 16.0);
      work.bytes += 4.0 * out.h * out.w * std::max(out.c, 16.0);
      values.push_back(out);
    }
    return values.back();
  };
  Extent at = {static_cast<double>(network.channels), static_cast<double>(network.height), static_cast<double>(network.width)};
  for (const Part& part : network.parts) {
    follow(part.shortcut, at, 1.0);
    at = follow(part.branch, at, static_cast<double>(part.ways.size()));
  }
  return work;
}

[[noreturn]] void fault(const char* what) {
  std::fprintf(stderr, "fault: %s\n", what);
  std::abort();
}

// One member's memory: vectors of exactly what is needed, so that one byte beyond is a report.
struct Place {
  std::vector<std::uint8_t> decisions;
  std::vector<float> budget = {0.1f}, multiplier, threshold, score = {-1.f};
};

std::size_t lowest(const Executor& network, std::size_t block) { return static_cast<std::size_t>(network.first_options[block]); }

// One to four members, any network at each place; certain, impossible, or escalated as it comes.
void run_chain(const Engine& engine, RunRequest request, Random& random) {
  const std::size_t length = 1 + random() % 4;
  std::vector<Place> places(length);
  for (std::size_t k = 0; k < length; ++k) {
    Place& place = places[k];
    Member member;
    member.network = random() % engine.networks();
    const Executor& network = engine.network(member.network);
    place.decisions.assign(static_cast<std::size_t>(network.gated_blocks()), 255);
    place.multiplier = {static_cast<float>(random() % 41) - 20.f};
    place.threshold = {static_cast<float>(random() % 3) * 0.5f};
    member.decisions = place.decisions.data();
    if (network.takes_budget) member.budgets = place.budget.data();
    if (random() % 2) member.multipliers = place.multiplier.data();
    if (k + 1 < length) member.thresholds = place.threshold.data();
    if (random() % 2) member.scores = place.score.data();
    member.temperature = static_cast<float>(1 + random() % 30) * 0.1f;
    request.chain.push_back(member);
  }
  request.score = kScores[random() % std::size(kScores)];
  engine.run(request);
  const std::size_t answered = request.answered[0];
  if (answered >= length) fault("no member answered");
  for (std::size_t k = 0; k < length; ++k) {
    const Executor& network = engine.network(request.chain[k].network);
    for (std::size_t b = 0; b < places[k].decisions.size(); ++b) {
      const std::size_t decision = places[k].decisions[b];
      if (k > answered ? decision != 255 : decision >= static_cast<std::size_t>(network.options()) || decision < lowest(network, b)) {
        fault("a decision is out of range");
      }
    }
    if (k < answered && places[k].threshold[0] == 0.f) fault("an image is escalated that was not to be");
    if (k > answered && request.chain[k].scores && !std::isnan(places[k].score[0])) fault("a member has a score that saw nothing");
  }
}

// A network by itself, at forced decisions.
void run_forced(const Engine& engine, RunRequest request, std::size_t index, Random& random) {
  const Executor& network = engine.network(index);
  const auto options = static_cast<std::size_t>(network.options());
  std::vector<std::uint8_t> decisions(static_cast<std::size_t>(network.gated_blocks()), 255), forced;
  for (std::size_t b = 0; b < decisions.size(); ++b) {
    forced.push_back(static_cast<std::uint8_t>(lowest(network, b) + random() % (options - lowest(network, b))));
  }
  Member member;
  member.network = index;
  member.decisions = decisions.data();
  request.chain = {member};
  request.forced = forced.data();
  engine.run(request);
  if (decisions != forced) fault("forced decisions were not taken");
}

void run_once(const Engine& engine, Random& random) {
  std::vector<std::uint8_t> pixels(engine.image().values()), answered(1, 255);
  std::vector<float> floats(pixels.size()), logits(static_cast<std::size_t>(engine.classes())), latency(1);
  for (std::uint8_t& pixel : pixels) pixel = static_cast<std::uint8_t>(random());
  for (float& value : floats) value = static_cast<float>(random() % 2001) * 0.002f - 2.f;
  RunRequest request;
  request.images = pixels.data();
  request.count = 1;
  request.logits = logits.data();
  request.answered = answered.data();
  request.latency_us = latency.data();
  run_chain(engine, request, random);
  if (engine.takes_floats()) {
    request.images = floats.data();
    request.pixels = PixelType::f32;
  }
  run_forced(engine, request, random() % engine.networks(), random);
}

// By what the bundle says of itself, its digest aside.
void operate(const Session& session, Random& random) {
  const Operator& operating = session.operating();
  std::vector<std::uint8_t> pixels(session.engine().image().values()), decisions(session.blocks());
  for (std::uint8_t& pixel : pixels) pixel = static_cast<std::uint8_t>(random());
  float cost = -1.f;
  std::uint8_t network = 255;
  Answers answers;
  answers.costs = &cost;
  answers.networks = &network;
  answers.decisions = decisions.data();
  const auto run = [&](const Operation& operation) {
    try {
      session.run(pixels.data(), 1, operation, answers);
    } catch (const NotFinite&) {
      return;
    }
    if (!(cost >= 0.f) || network >= session.engine().networks()) fault("an answer is out of range");
  };
  if (operating.points() > 0) run(operating.at_point(random() % operating.points()));
  const auto budgets = operating.budgets();
  const double share = static_cast<double>(random() % 1001) / 1000.0;
  try {
    if (budgets) run(operating.at(budgets->first + share * (budgets->second - budgets->first)));
    run(operating.at({}));
  } catch (const std::invalid_argument& error) {
    if (error.what()[0] == '\0') fault("an error says nothing");
  }
}

// A session, if the bundle says how it is operated.
std::unique_ptr<Session> session_of(const std::vector<std::uint8_t>& data, Isa isa) {
  try {
    return std::make_unique<Session>(read_whole_bundle(data.data(), data.size(), Digest::ignored), isa, 1);
  } catch (const BundleError& error) {
    if (error.what()[0] == '\0') fault("an error says nothing");
    return nullptr;
  }
}

Outcome read_and_run(const std::uint8_t* data, std::size_t size, Random& random) {
  // A copy of its own: one byte beyond is a report.
  const std::vector<std::uint8_t> exact(data, data + size);
  std::vector<Network> networks;
  try {
    networks = read_bundle(exact.data(), exact.size());
  } catch (const BundleError& error) {
    if (error.what()[0] == '\0') fault("an error says nothing");
    return Outcome::refused;
  }
  if (networks.empty() || networks.size() > kMaxNetworks) fault("a bundle has no networks, or too many");
  for (const Network& network : networks) {
    const Work work = work_of(network);
    if (work.macs > kMostMacs || work.bytes > kMostBytes) return Outcome::too_large;
  }
  Isa isa = kIsas[random() % std::size(kIsas)];
  if (!isa_supported(isa)) isa = Isa::automatic;
  if (const std::unique_ptr<Session> session = session_of(exact, isa)) {
    run_once(session->engine(), random);
    operate(*session, random);
    return Outcome::operated;
  }
  run_once(Engine(networks, isa, 1), random);
  return Outcome::ran;
}

}  // namespace
}  // namespace fracskip

#ifdef FRACSKIP_LIBFUZZER

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fracskip::Random random(size);
  fracskip::read_and_run(data, size, random);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  fracskip::Random random(seed);
  if (random() % 4 == 0) return LLVMFuzzerMutate(data, size, most);
  const auto kind = static_cast<fracskip::Mutation>(random() % fracskip::kMutations);
  const bool fresh = random() % 16 == 0;
  const fracskip::Bytes out = fresh ? fracskip::random_network(random) : fracskip::mutate({data, data + size}, kind, random);
  const std::size_t kept = std::min(out.size(), most);
  std::copy_n(out.begin(), kept, data);
  return kept;
}

#else

namespace {

using namespace fracskip;

#ifdef __clang__
const char* const kCompiler = __VERSION__;
#else
const char* const kCompiler = "GCC " __VERSION__;
#endif

std::vector<Bytes> read_seeds(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".fsk") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> seeds;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return seeds;
}

struct Counts {
  long of[kMutations][kOutcomes] = {};

  // Of an outcome and those after it.
  long from(Outcome outcome) const {
    long sum = 0;
    for (const auto& row : of) sum = std::accumulate(row + static_cast<int>(outcome), row + kOutcomes, sum);
    return sum;
  }
};

void write_counts(std::FILE* out, const Counts& counts, std::size_t seeds, unsigned long seed,
                  double seconds) {
  const long all = counts.from(Outcome::refused), accepted = counts.from(Outcome::too_large);
  std::fprintf(out, "{\"mutants\": %ld, \"refused\": %ld, \"accepted\": %ld, \"run\": %ld, \"operated\": %ld, ", all, all - accepted, accepted,
               counts.from(Outcome::ran), counts.from(Outcome::operated));
  std::fprintf(out, "\"seed\": %lu, \"seed_bundles\": %zu, \"seconds\": %.1f, \"compiler\": \"%s\"",
               seed, seeds, seconds, kCompiler);
  std::fprintf(out, ",\n \"by_mutation\": {");
  for (int m = 0; m < kMutations; ++m) {
    const long* row = counts.of[m];
    std::fprintf(out, "%s\n  \"%s\": {\"refused\": %ld, \"accepted\": %ld, \"run\": %ld}",
                 m ? "," : "", mutation_name(static_cast<Mutation>(m)), row[0], row[1] + row[2] + row[3],
                 row[2] + row[3]);
  }
  std::fprintf(out, "}}\n");
}

}  // namespace

int main(int argc, char** argv) {
  std::string folder, json, dump, sound;
  long count = 1500;
  unsigned long seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--seeds") folder = argv[i + 1];
    if (option == "--count") count = std::atol(argv[i + 1]);
    if (option == "--seed") seed = std::strtoul(argv[i + 1], nullptr, 10);
    if (option == "--json") json = argv[i + 1];
    if (option == "--sound") sound = argv[i + 1];  // a folder for the networks before they are damaged
    if (option == "--dump") dump = argv[i + 1];  // keeps the mutant in hand, for when it crashes
  }
  const std::vector<Bytes> seeds = folder.empty() ? std::vector<Bytes>() : read_seeds(folder);
  if (seeds.empty()) {
    std::fprintf(stderr, "fuzz_bundle --seeds FOLDER [--count N] [--seed S] [--json FILE]\n");
    return 2;
  }
  const auto begin = std::chrono::steady_clock::now();
  Random random(seed);
  for (const Bytes& bundle : seeds) {
    if (read_and_run(bundle.data(), bundle.size(), random) < Outcome::ran) {
      std::fprintf(stderr, "a seed bundle is refused or too large to run\n");
      return 2;
    }
  }
  Counts counts;
  for (long i = 0; i < count; ++i) {
    // Each mutant follows from its number alone, so a failing one can be made again.
    Random own(seed * 1000003u + static_cast<unsigned long>(i));
    // Half of them are of networks made for the purpose, which must be sound before they are damaged.
    const bool fresh = own() % 2;
    Bytes mutant = fresh ? random_network(own) : seeds[own() % seeds.size()];
    if (fresh && !sound.empty()) {
      std::ofstream(sound + "/" + std::to_string(i) + ".fsk", std::ios::binary)
          .write(reinterpret_cast<const char*>(mutant.data()), static_cast<std::streamsize>(mutant.size()));
    }
    if (fresh) {
      const Outcome outcome = read_and_run(mutant.data(), mutant.size(), own);
      if (outcome == Outcome::refused || outcome == Outcome::ran) fault("a sound network is refused, or can't be operated");
    }
    auto kind = Mutation::truncate;
    for (std::size_t times = own() % 8 == 0 ? 2 : 1; times > 0; --times) {
      kind = static_cast<Mutation>(own() % kMutations);
      mutant = mutate(mutant, kind, own);
    }
    if (!dump.empty()) {
      std::ofstream(dump, std::ios::binary)
          .write(reinterpret_cast<const char*>(mutant.data()),
                 static_cast<std::streamsize>(mutant.size()));
    }
    const Outcome outcome = read_and_run(mutant.data(), mutant.size(), own);
    ++counts.of[static_cast<int>(kind)][static_cast<int>(outcome)];
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  write_counts(stdout, counts, seeds.size(), seed, taken.count());
  if (!json.empty()) {
    std::FILE* file = std::fopen(json.c_str(), "w");
    if (!file) return 2;
    write_counts(file, counts, seeds.size(), seed, taken.count());
    std::fclose(file);
  }
  return 0;
}

#endif
