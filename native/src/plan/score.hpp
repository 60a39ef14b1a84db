// What says how sure a network is of its answer, by name.
#pragma once

#include <optional>
#include <string>

namespace fracskip {

enum class Score { probability, margin, entropy };

inline constexpr Score kScores[] = {Score::probability, Score::margin, Score::entropy};

inline const char* score_name(Score score) {
  constexpr const char* kNames[] = {"probability", "margin", "entropy"};
  return kNames[static_cast<int>(score)];
}

inline std::optional<Score> score_named(const std::string& name) {
  for (const Score score : kScores) {
    if (name == score_name(score)) return score;
  }
  return std::nullopt;
}

}  // namespace fracskip
