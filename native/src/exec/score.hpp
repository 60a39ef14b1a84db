// How sure a member of a chain is of its answer (docs/bundle.md, "Scores").
#pragma once

#include <cstddef>

#include "plan/score.hpp"

namespace fracskip {

// Of logits over a temperature: larger is surer. NaN where a logit is no number.
float score_of(const float* logits, std::size_t classes, float temperature, Score score);

}  // namespace fracskip
