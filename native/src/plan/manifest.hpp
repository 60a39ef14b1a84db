// What a bundle says besides what engines execute: names, how its networks are operated, what images cost.
// docs/bundle.md defines every field.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plan/score.hpp"

namespace fracskip {

// Of one network.
struct OperatingPoints {
  struct Row {
    double budget, first, second, threshold;  // the budget, those of its two members, and what escalates
  };

  std::optional<double> target;
  double multiplier = 0.0;
  std::vector<std::pair<double, double>> curve;  // cost, multiplier
  std::vector<Row> cascade;
};

// MACs, those at fewer bits as so many at 32 that have the same BitOps.
struct Profile {
  double backbone = 0.0;  // the plain network, in full
  double fixed = 0.0;     // what every image executes, whatever is chosen
  double repeated = 0.0;  // of that, what a network executes that follows itself
  std::vector<double> branches;  // of each gated block, in full
};

struct NetworkManifest {
  std::string name;
  int height = 0, width = 0;
  std::vector<int> option_bits;
  std::vector<std::string> options, blocks;  // names of options and of gated blocks
  bool gated = false, budget_input = false;  // whether a gate decides, and takes a budget
  OperatingPoints points;
  Profile profile;
};

// Of a cascade of networks: fracskip.operating.cascade says it in Python.
struct CascadePoints {
  struct Member {
    std::size_t network;
    std::optional<double> budget;
    double temperature, bitops;
  };
  struct Point {
    std::vector<std::size_t> chain;
    std::vector<double> thresholds, rates;
    int correct;
    std::vector<std::array<int, 2>> against;  // of each member alone: how often better, how often worse
  };

  std::vector<Member> members;
  Score score = Score::probability;
  bool averaged = false;
  int images = 0;
  std::vector<Point> points;
};

struct Manifest {
  std::string digest;
  int height = 0, width = 0, channels = 0;  // of the images, which are the largest network's
  int resize = 0;                           // the shorter side that pictures have before their centre is cut out; 0: any
  std::vector<std::string> class_names;
  std::vector<NetworkManifest> networks;
  std::optional<CascadePoints> cascade;
};

}  // namespace fracskip
