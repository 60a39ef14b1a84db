// The gate, compiled once for each instruction set. Every sum runs over the inputs in order and
// nothing is contracted, so all sets give the same bits; only the outputs go side by side.
//
// Included after kernels.hpp, with FRACSKIP_GATE_NAMESPACE naming the set.
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fracskip {
namespace FRACSKIP_GATE_NAMESPACE {
namespace {

inline constexpr int kLanes = 8;
inline constexpr float kSensitivityScale = 1000.f;  // scores count hundredths of a nat, outputs 10 nats

using Lanes = float __attribute__((vector_size(32)));
using IntLanes = std::int32_t __attribute__((vector_size(32)));

inline Lanes load(const float* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void store(float* to, Lanes value) { std::memcpy(to, &value, sizeof value); }

// e^x for x <= 0 to about 2 ulp: 2^n times a polynomial on |f| <= ln(2) / 2 (Cephes' expf).
inline Lanes exp_of_negative(Lanes x) {
  x = x > -87.f ? x : Lanes{} - 87.f;
  const Lanes shifted = x * 1.44269504f + 12582912.f;  // 1.5 * 2^23: rounds to an integer
  const Lanes n = shifted - 12582912.f;
  const Lanes f = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Lanes p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * (f * f) + f + 1.f;
  IntLanes bits = __builtin_convertvector(n, IntLanes);
  bits = (bits + 127) << 23;
  Lanes power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline Lanes absolute(Lanes x) { return x > 0.f ? x : -x; }

inline Lanes sigmoid(Lanes x) {
  const Lanes e = exp_of_negative(-absolute(x));
  const Lanes small = e / (1.f + e);  // the sigmoid of -|x|
  return x > 0.f ? 1.f - small : small;
}

inline Lanes hyperbolic_tangent(Lanes x) {
  const Lanes e = exp_of_negative(-2.f * absolute(x));
  const Lanes t = (1.f - e) / (1.f + e);
  return x > 0.f ? t : -t;
}

// A gate's weights are seldom in a near cache: they are asked for so far ahead.
inline constexpr int kAheadBytes = 4096;

// Weights (count, width) in float32.
struct FloatRows {
  const float* at;
  int width;
  FloatRows from(int column) const { return {at + column, width}; }
  template <int Groups>
  void read(int row, Lanes (&to)[Groups]) const {
    const float* values = at + row * width;
    __builtin_prefetch(values + kAheadBytes / sizeof *at);
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) to[g] = load(values + g * kLanes);
  }
};

// Weights (count, width) in bfloat16, the upper half of a float32: of 16 columns, word j holds j in its lower half and j + 8.
struct HalfRows {
  const std::uint32_t* at;
  int width;
  HalfRows from(int column) const { return {at + column / 2, width}; }
  template <int Groups>
  void read(int row, Lanes (&to)[Groups]) const {
    const std::uint32_t* words = at + row * width / 2;
    __builtin_prefetch(words + kAheadBytes / sizeof *at);
    static_assert(Groups % 2 == 0);
#pragma GCC unroll 2
    for (int g = 0; g < Groups; g += 2) {
      IntLanes pair;
      std::memcpy(&pair, words + g / 2 * kLanes, sizeof pair);
      const IntLanes low = pair << 16, high = pair & ~0xffff;
      std::memcpy(&to[g], &low, sizeof low);
      std::memcpy(&to[g + 1], &high, sizeof high);
    }
  }
};

// out += in · weights. `Groups` vectors stay in registers, in `Ways` partial sums, because one sum would wait for itself at
// every step.
template <int Groups, int Ways, class Rows>
inline void multiply_groups(const float* in, int count, const Rows& weights, float* out) {
  Lanes sum[Ways][Groups] = {}, row[Groups];
  int i = 0;
  for (; i + Ways <= count; i += Ways) {
#pragma GCC unroll 4
    for (int way = 0; way < Ways; ++way) {
      weights.read(i + way, row);
#pragma GCC unroll 4
      for (int g = 0; g < Groups; ++g) sum[way][g] += in[i + way] * row[g];
    }
  }
  for (; i < count; ++i) {
    weights.read(i, row);
    for (int g = 0; g < Groups; ++g) sum[0][g] += in[i] * row[g];
  }
  for (int g = 0; g < Groups; ++g) {
    Lanes total = sum[0][g];
    for (int way = 1; way < Ways; ++way) total += sum[way][g];
    store(out + g * kLanes, load(out + g * kLanes) + total);
  }
}

template <class Rows>
inline void multiply(const float* in, int count, const Rows& weights, float* out) {
  const int width = weights.width;
  int done = 0;
  for (; done + 4 * kLanes <= width; done += 4 * kLanes) multiply_groups<4, 2>(in, count, weights.from(done), out + done);
  for (; done + 2 * kLanes <= width; done += 2 * kLanes) multiply_groups<2, 4>(in, count, weights.from(done), out + done);
  if constexpr (std::is_same_v<Rows, FloatRows>) {
    for (; done < width; done += kLanes) multiply_groups<1, 4>(in, count, weights.from(done), out + done);
  }
}

int decide(const GateArgs& a) {
  const int padded = a.padded_width;
  float* features = a.work;
  std::memcpy(features, a.embed_bias, padded * sizeof(float));
  if (a.embed_bf16) {
    multiply(a.pooled, a.channels, HalfRows{static_cast<const std::uint32_t*>(a.embed), padded}, features);
  } else {
    multiply(a.pooled, a.channels, FloatRows{static_cast<const float*>(a.embed), padded}, features);
  }
  if (a.budget) {
    for (int i = 0; i < padded; ++i) features[i] += a.budget[i];
  }
  const float* last = features;
  if (a.recurrent) {
    float* parts = a.work + padded;
    std::memcpy(parts, a.lstm + 2 * a.width * 4 * padded, 4 * padded * sizeof(float));
    multiply(features, a.width, FloatRows{a.lstm, 4 * padded}, parts);
    multiply(a.hidden, a.width, FloatRows{a.lstm + a.width * 4 * padded, 4 * padded}, parts);
    for (int i = 0; i < padded; i += kLanes) {
      const Lanes in = sigmoid(load(parts + i));
      const Lanes keep = sigmoid(load(parts + padded + i));
      const Lanes candidate = hyperbolic_tangent(load(parts + 2 * padded + i));
      const Lanes out = sigmoid(load(parts + 3 * padded + i));
      const Lanes cell = keep * load(a.cell + i) + in * candidate;
      store(a.cell + i, cell);
      store(a.hidden + i, out * hyperbolic_tangent(cell));
    }
    last = a.hidden;
  } else {
    for (int i = 0; i < padded; ++i) features[i] = features[i] > 0.f ? features[i] : 0.f;
  }
  std::memcpy(a.scores, a.out + a.width * a.padded_options, a.padded_options * sizeof(float));
  multiply(last, a.width, FloatRows{a.out, a.padded_options}, a.scores);
  if (a.block_bias) {
    for (int k = 0; k < a.options; ++k) a.scores[k] += a.block_bias[k];
  }
  for (int k = 0; k < a.padded_options; k += kLanes) {
    const Lanes output = load(a.scores + k);
    store(a.scores + k, a.sensitivity ? kSensitivityScale * exp_of_negative(output < 0.f ? output : Lanes{}) : -output);
  }
  if (a.multiplier != 0.f) {
    for (int k = 0; k < a.options; ++k) a.scores[k] += a.multiplier * a.cost_weights[k];
  }
  int best = 0;
  for (int k = 1; k < a.options; ++k) {
    if (a.scores[k] < a.scores[best]) best = k;
  }
  return best;
}

}  // namespace
}  // namespace FRACSKIP_GATE_NAMESPACE
}  // namespace fracskip
