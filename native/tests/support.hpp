// What the drivers share: bundles from a folder, images that differ, one call of the engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "io/bundle.hpp"
#include "exec/engine.hpp"

namespace fracskip {

[[noreturn]] inline void fault(const std::string& what) {
  std::fprintf(stderr, "fault: %s\n", what.c_str());
  std::exit(1);
}

// What a bundle holds: one network, or those of a cascade.
using Networks = std::vector<Network>;

// Of the folder's .fsk files, in order of name.
inline std::vector<Networks> read_bundles(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".fsk") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Networks> bundles;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(file), {});
    bundles.push_back(
        read_bundle(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()));
  }
  if (bundles.empty()) fault("no bundles in " + folder);
  return bundles;
}

// Pixels of growing brightness, so that decisions differ between images.
inline std::vector<std::uint8_t> make_images(const Engine& engine, std::size_t count) {
  const std::size_t values = engine.image().values();
  std::vector<std::uint8_t> images(count * values);
  std::uint32_t state = 12345;
  for (std::size_t i = 0; i < images.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    images[i] = static_cast<std::uint8_t>((state >> 24) * (1 + i / values) / (count + 1));
  }
  return images;
}

struct Answers {
  std::vector<float> logits;
  std::vector<std::uint8_t> answered;
  std::vector<std::vector<std::uint8_t>> decisions;  // of each member

  bool operator==(const Answers& other) const {
    return logits == other.logits && answered == other.answered && decisions == other.decisions;
  }
};

// A request through all networks of an engine, the last one twice, and memory for its answers. About half of the images are
// escalated: scores of networks that were never trained lie around these.
class Call {
 public:
  Call(const Engine& engine, const std::vector<std::uint8_t>& images, std::size_t count)
      : latency_(count), budgets_(count, 0.1f), thresholds_(count), multipliers_(count, -5.f) {
    answers.logits.resize(count * static_cast<std::size_t>(engine.classes()));
    answers.answered.resize(count);
    for (std::size_t i = 0; i < count; ++i) thresholds_[i] = i % 3 == 0 ? 2.f : 0.5f;
    const std::size_t length = engine.networks() + 1;
    answers.decisions.resize(length);
    for (std::size_t k = 0; k < length; ++k) {
      Member member;
      member.network = std::min(k, length - 2);
      const Executor& network = engine.network(member.network);
      answers.decisions[k].assign(count * static_cast<std::size_t>(network.gated_blocks()), 255);
      member.decisions = answers.decisions[k].data();
      if (network.takes_budget) member.budgets = budgets_.data();
      if (k + 1 < length) member.thresholds = thresholds_.data();
      else member.multipliers = multipliers_.data();
      request.chain.push_back(member);
    }
    request.images = images.data();
    request.count = count;
    request.logits = answers.logits.data();
    request.answered = answers.answered.data();
    request.latency_us = latency_.data();
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Answers answers;
  RunRequest request;

 private:
  std::vector<float> latency_, budgets_, thresholds_, multipliers_;
};

inline Answers run(const Engine& engine, const std::vector<std::uint8_t>& images, std::size_t count) {
  Call call(engine, images, count);
  engine.run(call.request);
  return call.answers;
}

}  // namespace fracskip
