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

// The networks of the folder's .fsk files, in order of name.
inline std::vector<Network> read_networks(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".fsk") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Network> networks;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(file), {});
    networks.push_back(
        read_bundle(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()));
  }
  if (networks.empty()) fault("no bundles in " + folder);
  return networks;
}

// Pixels of growing brightness, so that decisions differ between images.
inline std::vector<std::uint8_t> make_images(const Network& network, std::size_t count) {
  const auto values =
      static_cast<std::size_t>(network.height) * network.width * network.channels;
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
  std::vector<std::uint8_t> decisions;

  bool operator==(const Answers& other) const {
    return logits == other.logits && decisions == other.decisions;
  }
};

inline Answers run(const Engine& engine, const Network& network,
                   const std::vector<std::uint8_t>& images, std::size_t count) {
  Answers answers;
  answers.logits.resize(count * static_cast<std::size_t>(engine.classes()));
  answers.decisions.resize(count * static_cast<std::size_t>(engine.gated_blocks()));
  std::vector<float> latency(count), budgets(count, 0.1f);
  RunRequest request;
  request.images = images.data();
  request.count = count;
  if (!network.gate.budget_weight.empty()) request.budgets = budgets.data();
  request.logits = answers.logits.data();
  request.decisions = answers.decisions.data();
  request.latency_us = latency.data();
  engine.run(request);
  return answers;
}

}  // namespace fracskip
