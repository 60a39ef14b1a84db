#include "exec/score.hpp"

#include <algorithm>
#include <cmath>

namespace fracskip {

float score_of(const float* logits, std::size_t classes, float temperature, Score score) {
  const float* const best = std::max_element(logits, logits + classes);
  float sum = 0.f, weighted = 0.f, second = 0.f;
  for (const float* logit = logits; logit != logits + classes; ++logit) {
    const float over = (*logit - *best) / temperature;
    const float power = std::exp(over);
    sum += power;
    if (logit != best) second = std::max(second, power);
    if (power > 0.f) weighted += power * over;  // `over` may be -infinity where nothing is left of the power
  }
  // A sum that is NaN makes each of these NaN.
  if (score == Score::probability) return 1.f / sum;
  if (score == Score::margin) return (1.f - second) / sum;
  if (classes == 1) return 1.f / sum;  // there is no entropy to compare with
  return 1.f - (std::log(sum) - weighted / sum) / std::log(static_cast<float>(classes));
}

}  // namespace fracskip
