// What happens to values besides dense convolutions, compiled once for each instruction set.
//
// Included after kernels.hpp, where FRACSKIP_VALUES names the set and holds what its lanes are: Lanes, kLanes,
// and load, store, all, from_levels, to_levels, times_plus, largest, smallest, root, rounded, two_to, where_less.
namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

// -- activations ----------------------------------------------------------------------------------------

// e^x for x <= 0 to about 2 ulp: 2^n times a polynomial on |f| <= ln(2) / 2 (Cephes' expf).
inline Lanes exp_of_negative(Lanes x) {
  x = largest(x, all(-87.f));
  const Lanes n = rounded(x * all(1.44269504f));
  const Lanes f = times_plus(n, all(2.12194440e-4f), times_plus(n, all(-0.693359375f), x));
  Lanes p = times_plus(f, all(1.9875691500e-4f), all(1.3981999507e-3f));
  p = times_plus(p, f, all(8.3334519073e-3f));
  p = times_plus(p, f, all(4.1665795894e-2f));
  p = times_plus(p, f, all(1.6666665459e-1f));
  p = times_plus(p, f, all(5.0000001201e-1f));
  p = times_plus(p, f * f, f) + all(1.f);
  return p * two_to(n);
}

inline Lanes absolute(Lanes x) { return largest(x, all(0.f) - x); }

inline Lanes sigmoid(Lanes x) {
  const Lanes e = exp_of_negative(all(0.f) - absolute(x));
  const Lanes small = e / (all(1.f) + e);  // the sigmoid of -|x|
  return where_less(all(0.f), x, all(1.f) - small, small);
}

// The error function to about 1 ulp: a polynomial near 0, and beyond, 1 - e^polynomial.
inline Lanes error_function(Lanes x) {
  const Lanes t = absolute(x), s = x * x;
  Lanes far = times_plus(all(-1.72853470e-5f), t, all(3.83197126e-4f));
  far = times_plus(far, s, times_plus(all(-3.88396438e-3f), t, all(2.42546219e-2f)));
  far = times_plus(far, t, all(-1.06777877e-1f));
  far = times_plus(far, t, all(-6.34846687e-1f));
  far = times_plus(far, t, all(-1.28717512e-1f));
  far = all(1.f) - exp_of_negative(smallest(times_plus(far, t, all(0.f) - t), all(0.f)));
  far = where_less(x, all(0.f), all(0.f) - far, far);
  Lanes near = times_plus(all(-5.96761703e-4f), s, all(4.99119423e-3f));
  near = times_plus(near, s, all(-2.67681349e-2f));
  near = times_plus(near, s, all(1.12819925e-1f));
  near = times_plus(near, s, all(-3.76125336e-1f));
  near = times_plus(near, s, all(1.28379166e-1f));
  near = times_plus(near, x, x);
  return where_less(all(0.927734375f), t, far, near);
}

inline Lanes relu6(Lanes x) { return smallest(largest(x, all(0.f)), all(6.f)); }
inline Lanes hardsigmoid(Lanes x) { return relu6(x + all(3.f)) * all(1.f / 6.f); }

template <Act A>
inline Lanes activated(Lanes x) {
  switch (A) {
    case Act::relu: return largest(x, all(0.f));
    case Act::relu6: return relu6(x);
    case Act::hardsigmoid: return hardsigmoid(x);
    case Act::hardswish: return x * hardsigmoid(x);
    case Act::sigmoid: return sigmoid(x);
    case Act::silu: return x * sigmoid(x);
    case Act::gelu: return x * (all(0.5f) + all(0.5f) * error_function(x * all(0.707106781f)));
    default: return x;
  }
}

template <Act A>
struct Activation {
  static constexpr Act kAct = A;
};

// Calls `body` with the activation as a type.
template <class Body>
inline void with_act(Act act, Body body) {
  switch (act) {
    case Act::none: return body(Activation<Act::none>{});
    case Act::relu: return body(Activation<Act::relu>{});
    case Act::relu6: return body(Activation<Act::relu6>{});
    case Act::hardsigmoid: return body(Activation<Act::hardsigmoid>{});
    case Act::hardswish: return body(Activation<Act::hardswish>{});
    case Act::sigmoid: return body(Activation<Act::sigmoid>{});
    case Act::silu: return body(Activation<Act::silu>{});
    case Act::gelu: return body(Activation<Act::gelu>{});
  }
}

// -- pixel by pixel -------------------------------------------------------------------------------------

void clear_padding(const ValueArgs& a) {
  if (keeps_zero(a.act)) return;
  for (int p = 0; p < a.pixels; ++p) {
    for (int c = a.used; c < a.channels; ++c) a.out[static_cast<std::ptrdiff_t>(p) * a.channels + c] = 0.f;
  }
}

// out = act(value(in, place among the channels, place in the whole))
template <class Value>
inline void each(const ValueArgs& a, Value value) {
  // Locals: stores could change what `a` holds.
  const float* const in = a.in;
  float* const out = a.out;
  const int channels = a.channels, pixels = a.pixels;
  with_act(a.act, [=](auto act) {
    for (int p = 0; p < pixels; ++p) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(p) * channels;
      for (int c = 0; c < channels; c += kLanes) store(out + at + c, activated<act.kAct>(value(load(in + at + c), c, at + c)));
    }
  });
  clear_padding(a);
}

void act(const ValueArgs& a) {
  each(a, [](Lanes x, int, std::ptrdiff_t) { return x; });
}

void add(const ValueArgs& a) {
  if (a.spread) each(a, [other = a.other](Lanes x, int c, std::ptrdiff_t) { return x + load(other + c); });
  else each(a, [other = a.other](Lanes x, int, std::ptrdiff_t at) { return x + load(other + at); });
}

void mul(const ValueArgs& a) {
  if (a.spread) each(a, [other = a.other](Lanes x, int c, std::ptrdiff_t) { return x * load(other + c); });
  else each(a, [other = a.other](Lanes x, int, std::ptrdiff_t at) { return x * load(other + at); });
}

void affine(const ValueArgs& a) {
  each(a, [gain = a.gain, bias = a.bias](Lanes x, int c, std::ptrdiff_t) { return x * load(gain + c) + load(bias + c); });
}

inline float sum_of(Lanes x) {
  float parts[kLanes];
  store(parts, x);
  float sum = 0.f;
  for (int i = 0; i < kLanes; ++i) sum += parts[i];
  return sum;
}

// Padded channels have no gain and no bias; the variance must leave them out.
void norm(const ValueArgs& a) {
  const int whole = a.used / kLanes * kLanes;
  const float share = 1.f / static_cast<float>(a.used);
  for (int p = 0; p < a.pixels; ++p) {
    const float* in = a.in + static_cast<std::ptrdiff_t>(p) * a.channels;
    float* out = a.out + static_cast<std::ptrdiff_t>(p) * a.channels;
    Lanes sum = all(0.f);
    for (int c = 0; c < a.channels; c += kLanes) sum = sum + load(in + c);
    const float mean = sum_of(sum) * share;
    Lanes squares = all(0.f);
    for (int c = 0; c < whole; c += kLanes) {
      const Lanes d = load(in + c) - all(mean);
      squares = times_plus(d, d, squares);
    }
    float rest = 0.f;
    for (int c = whole; c < a.used; ++c) rest += (in[c] - mean) * (in[c] - mean);
    const Lanes deviation = root(all((sum_of(squares) + rest) * share + a.eps));
    const Lanes factor = all(1.f) / deviation;
    for (int c = 0; c < a.channels; c += kLanes) {
      store(out + c, (load(in + c) - all(mean)) * factor * load(a.gain + c) + load(a.bias + c));
    }
  }
}

// By rows of 64 pixels, so that long sums keep their precision.
void mean(const ValueArgs& a) {
  constexpr int kRun = 64;
  const Lanes share = all(1.f / static_cast<float>(a.pixels));
  for (int c = 0; c < a.channels; c += kBlock) {
    Lanes total[kBlock / kLanes];
    for (Lanes& t : total) t = all(0.f);
    for (int begin = 0; begin < a.pixels; begin += kRun) {
      const int end = a.pixels - begin < kRun ? a.pixels : begin + kRun;
      Lanes sum[kBlock / kLanes];
      for (Lanes& s : sum) s = all(0.f);
      const float* in = a.in + static_cast<std::ptrdiff_t>(begin) * a.channels + c;
      for (int p = begin; p < end; ++p, in += a.channels) {
        for (int i = 0; i < kBlock / kLanes; ++i) sum[i] = sum[i] + load(in + i * kLanes);
      }
      for (int i = 0; i < kBlock / kLanes; ++i) total[i] = total[i] + sum[i];
    }
    for (int i = 0; i < kBlock / kLanes; ++i) store(a.out + c + i * kLanes, total[i] * share);
  }
}

void pixels(const PixelArgs& a) {
  const Lanes share = all(1.f / 255.f);
  std::ptrdiff_t i = 0;
  int channel = 0;
  for (; i + kBlock <= a.count; i += kBlock) {
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      store(a.out + i + lane, (from_levels(a.in + i + lane) * share - load(a.mean + channel + lane)) * load(a.inverse + channel + lane));
    }
    channel = (channel + kBlock) % a.channels;
  }
  for (; i < a.count; ++i, ++channel) a.out[i] = (static_cast<float>(a.in[i]) * (1.f / 255.f) - a.mean[channel]) * a.inverse[channel];
}

// -- into the form that convolutions take ---------------------------------------------------------------

inline Lanes value_of(const float* from) { return load(from); }
inline Lanes value_of(const std::uint8_t* from) { return from_levels(from); }

template <class In, class Store>
inline void stage(const StageArgs& a, std::ptrdiff_t out_size, Store put) {
  const int channels = a.channels, height = a.h, width = a.w;
  const float* const factor = a.factor;
  const Lanes step = all(a.step), in_zero = all(a.in_zero);
  const auto value = [=](const In* from) { return sizeof(In) == 1 ? (value_of(from) - in_zero) * step : value_of(from); };
  const std::ptrdiff_t in_pixel = a.in_pixel, in_gap = a.in_row - width * in_pixel;
  const std::ptrdiff_t out_pixel = a.out_pixel * out_size, out_gap = a.out_row * out_size - width * out_pixel;
  with_act(a.act, [=](auto act) {
    const In* in = static_cast<const In*>(a.in);
    char* out = static_cast<char*>(a.out);
    for (int h = 0; h < height; ++h, in += in_gap, out += out_gap) {
      for (int w = 0; w < width; ++w, in += in_pixel, out += out_pixel) {
        if (factor) {
          for (int c = 0; c < channels; c += kLanes) put(out, c, activated<act.kAct>(value(in + c) * load(factor + c)));
        } else {
          for (int c = 0; c < channels; c += kLanes) put(out, c, activated<act.kAct>(value(in + c)));
        }
      }
    }
  });
}

// What channels that only pad hold is no matter: their weights are zero. But it must be finite.
template <class In>
void copy(const StageArgs& a) {
  stage<In>(a, sizeof(float), [](char* out, int c, Lanes x) { store(reinterpret_cast<float*>(out) + c, x); });
}

void values(const StageArgs& a) {
  copy<std::uint8_t>(a);
  for (int h = 0; a.used < a.channels && h < a.h; ++h) {
    float* out = static_cast<float*>(a.out) + h * a.out_row;
    for (int w = 0; w < a.w; ++w, out += a.out_pixel) {
      for (int c = a.used; c < a.channels; ++c) out[c] = 0.f;
    }
  }
}

void fill(std::uint8_t* to, std::ptrdiff_t count, std::uint8_t level) { __builtin_memset(to, level, static_cast<std::size_t>(count)); }

// The border of a stage's levels.
void surround(const StageArgs& a) {
  if (a.border == 0) return;
  const auto level = static_cast<std::uint8_t>(a.zero);
  const std::ptrdiff_t side = static_cast<std::ptrdiff_t>(a.border) * a.out_pixel;
  const std::ptrdiff_t inner = static_cast<std::ptrdiff_t>(a.w) * a.out_pixel;
  std::uint8_t* row = static_cast<std::uint8_t*>(a.out) - a.border * a.out_row - side;
  for (int h = -a.border; h < a.h + a.border; ++h, row += a.out_row) {
    if (h < 0 || h >= a.h) {
      fill(row, inner + 2 * side, level);
    } else {
      fill(row, side, level);
      fill(row + side + inner, side, level);
    }
  }
}

void copy_levels(const StageArgs& a) {
  const std::ptrdiff_t size = a.channels;
  for (int h = 0; h < a.h; ++h) {
    const std::uint8_t* in = static_cast<const std::uint8_t*>(a.in) + h * a.in_row;
    std::uint8_t* out = static_cast<std::uint8_t*>(a.out) + h * a.out_row;
    if (a.in_pixel == size && a.out_pixel == size) {
      __builtin_memcpy(out, in, static_cast<std::size_t>(a.w * size));
    } else {
      for (int w = 0; w < a.w; ++w, in += a.in_pixel, out += a.out_pixel) __builtin_memcpy(out, in, static_cast<std::size_t>(size));
    }
  }
  surround(a);
}

template <class In>
void levels(const StageArgs& a) {
  const Lanes scale = all(a.scale), zero = all(a.zero), low = all(-a.zero), high = all(a.top - a.zero);
  if (a.zero == 0.f) {
    stage<In>(a, 1, [=](char* out, int c, Lanes x) { to_levels(reinterpret_cast<std::uint8_t*>(out) + c, largest(smallest(x * scale, high), low)); });
  } else {
    stage<In>(a, 1, [=](char* out, int c, Lanes x) {
      to_levels(reinterpret_cast<std::uint8_t*>(out) + c, rounded(largest(smallest(x * scale, high), low)) + zero);
    });
  }
  surround(a);
}

// What the fourth of three channels holds is no matter either.
void levels_of_image(const StageArgs& a) {
  constexpr int kRun = 64;
  const Lanes scale = all(a.scale), zero = all(a.zero), low = all(-a.zero), high = all(a.top - a.zero);
  std::uint8_t run[kRun * kImagePixel + kBlock] = {};
  for (int h = 0; h < a.h; ++h) {
    const float* in = static_cast<const float*>(a.in) + h * a.in_row;
    std::uint8_t* out = static_cast<std::uint8_t*>(a.out) + h * a.out_row;
    for (int w = 0; w < a.w; w += kRun) {
      const int pixels = a.w - w < kRun ? a.w - w : kRun, values = pixels * a.used;
      for (int i = 0; i < values; i += kLanes) to_levels(run + i, rounded(largest(smallest(load(in + i) * scale, high), low)) + zero);
      in += values;
      for (int p = 0; p < pixels; ++p, out += kImagePixel) __builtin_memcpy(out, run + p * a.used, kImagePixel);
    }
  }
  surround(a);
}

// -- the 8-bit stream -----------------------------------------------------------------------------------

template <class Other>
void round_with(const RoundArgs& a) {
  const float* const in = a.in;
  const Other* const other = static_cast<const Other*>(a.residual);
  std::uint8_t* const out = a.out;
  const std::ptrdiff_t count = a.count;
  with_act(a.act, [=](auto act) {
    for (std::ptrdiff_t i = 0; i < count; i += kLanes) {
      Lanes y = activated<act.kAct>(load(in + i));
      if (other) y = y + value_of(other + i);
      to_levels(out + i, largest(smallest(y, all(255.f)), all(0.f)));
    }
  });
}

void round(const RoundArgs& a) {
  if (a.residual_type == Residual::u8) round_with<std::uint8_t>(a);
  else round_with<float>(a);
}

void level_mean(const LevelMeanArgs& a) {
  const int pixels = a.h * a.w;
  for (int c = 0; c < a.channels; c += kBlock) {
    std::uint32_t sum[kBlock] = {};
    for (int h = 0; h < a.h; ++h) {
      const std::uint8_t* in = a.in + h * a.in_row + c;
      for (int w = 0; w < a.w; ++w, in += a.channels) {
        for (int i = 0; i < kBlock; ++i) sum[i] += in[i];
      }
    }
    for (int i = 0; i < kBlock; ++i) a.out[c + i] = c + i < a.used ? fracskip::level_mean(sum[i], pixels, a.zero, a.step) : 0.f;
  }
}

}  // namespace
}  // namespace FRACSKIP_VALUES
}  // namespace fracskip

#include "kernels/common/windows.inl"

namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

constexpr ValueKernels value_kernels(DepthwiseFunction u8_to_f32, DepthwiseFunction u8) {
  ValueKernels kernels{};
  kernels.pixels = pixels;
  kernels.act = act;
  kernels.add = add;
  kernels.mul = mul;
  kernels.affine = affine;
  kernels.norm = norm;
  kernels.mean = mean;
  kernels.copy = copy<float>;
  kernels.levels = levels<float>;
  kernels.levels_of_image = levels_of_image;
  kernels.copy_levels = copy_levels;
  kernels.relevel = levels<std::uint8_t>;
  kernels.values = values;
  kernels.round = round;
  kernels.level_mean = level_mean;
  kernels.pool = pool;
  kernels.pool_levels = pool_levels;
  kernels.depthwise_f32 = depthwise<float, float>;
  kernels.depthwise_u8_to_f32 = u8_to_f32;
  kernels.depthwise_u8 = u8;
  return kernels;
}

}  // namespace
}  // namespace FRACSKIP_VALUES
}  // namespace fracskip
