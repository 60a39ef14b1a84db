// What says how sure a network is of its answer, by name.
#pragma once

namespace fracskip {

enum class Score { probability, margin, entropy };

inline constexpr Score kScores[] = {Score::probability, Score::margin, Score::entropy};

inline const char* score_name(Score score) {
  constexpr const char* kNames[] = {"probability", "margin", "entropy"};
  return kNames[static_cast<int>(score)];
}

}  // namespace fracskip
