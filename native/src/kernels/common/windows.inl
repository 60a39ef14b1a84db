// Pools and depthwise convolutions, of values.inl and included there.
namespace fracskip {
namespace FRACSKIP_VALUES {
namespace {

// So many channels at a time.
template <int Width>
void pool_levels_by(const PoolArgs& a) {
  typedef std::uint8_t Levels __attribute__((vector_size(Width)));
  const int channels = a.channels;
  for (int oh = 0; oh < a.out_h; ++oh) {
    const int top = oh * a.stride_h - a.pad_top, begin_h = top < 0 ? 0 : top;
    const int end_h = top + a.kernel_h < a.in_h ? top + a.kernel_h : a.in_h;
    std::uint8_t* out = static_cast<std::uint8_t*>(a.out) + oh * a.out_row;
    for (int ow = 0; ow < a.out_w; ++ow, out += channels) {
      const int left = ow * a.stride_w - a.pad_left, begin_w = left < 0 ? 0 : left;
      const int end_w = left + a.kernel_w < a.in_w ? left + a.kernel_w : a.in_w;
      for (int c = 0; c < channels; c += Width) {
        Levels most = {};  // levels are not below it
        for (int h = begin_h; h < end_h; ++h) {
          const std::uint8_t* in = static_cast<const std::uint8_t*>(a.in) + (static_cast<std::ptrdiff_t>(h) * a.in_w + begin_w) * channels + c;
          for (int w = begin_w; w < end_w; ++w, in += channels) {
            Levels level;
            __builtin_memcpy(&level, in, Width);
            most = level > most ? level : most;
          }
        }
        __builtin_memcpy(out + c, &most, Width);
      }
    }
  }
}

void pool_levels(const PoolArgs& a) {
  constexpr int kWide = kLanes > 4 ? 4 * kLanes : kBlock;  // a register
  if (a.channels % kWide == 0) pool_levels_by<kWide>(a);
  else pool_levels_by<kBlock>(a);
}

void pool(const PoolArgs& a) {
  for (int oh = 0; oh < a.out_h; ++oh) {
    float* out = static_cast<float*>(a.out) + oh * a.out_row;
    const int top = oh * a.stride_h - a.pad_top, left_h = top < 0 ? 0 : top;
    const int end_h = top + a.kernel_h < a.in_h ? top + a.kernel_h : a.in_h;
    for (int ow = 0; ow < a.out_w; ++ow, out += a.channels) {
      const int left = ow * a.stride_w - a.pad_left, begin_w = left < 0 ? 0 : left;
      const int end_w = left + a.kernel_w < a.in_w ? left + a.kernel_w : a.in_w;
      const float* first = static_cast<const float*>(a.in) + (static_cast<std::ptrdiff_t>(left_h) * a.in_w + begin_w) * a.channels;
      const float count = a.count_padding ? static_cast<float>(a.kernel_h) * static_cast<float>(a.kernel_w)
                                          : static_cast<float>(end_h - left_h) * static_cast<float>(end_w - begin_w);
      const Lanes share = all(1.f / count);
      for (int c = 0; c < a.channels; c += kLanes) {
        Lanes result = a.largest ? load(first + c) : all(0.f);
        for (int h = 0; h < end_h - left_h; ++h) {
          const float* in = first + static_cast<std::ptrdiff_t>(h) * a.in_w * a.channels + c;
          for (int w = 0; w < end_w - begin_w; ++w, in += a.channels) {
            result = a.largest ? largest(result, load(in)) : result + load(in);
          }
        }
        store(out + c, a.largest ? result : result * share);
      }
    }
  }
}

// `Pixels` pixels of a row by one set of lanes. Of `Taps` neighbouring taps, each pixel that they reach is read
// once; more than one only where stride and dilation are 1.
template <class In, class Out, int Taps, int Pixels>
inline void depthwise_piece(const DepthwiseArgs& a, const In* in, int c, Out* out) {
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(a.stride_w) * a.in_pixel;
  const std::ptrdiff_t tap = static_cast<std::ptrdiff_t>(a.dilation_w) * a.in_pixel;
  const float* weight = a.weights + c;
  Lanes sum[Pixels];
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p) sum[p] = all(0.f);
  for (int y = 0; y < a.kernel_h; ++y, in += a.dilation_h * a.in_row) {
    for (int x = 0; x < a.kernel_w; x += Taps, weight += Taps * a.channels) {
      const In* from = in + x * tap;
      Lanes weights[Taps];
#pragma GCC unroll 8
      for (int t = 0; t < Taps; ++t) weights[t] = load(weight + t * a.channels);
#pragma GCC unroll 16
      for (int q = 0; q < Pixels + Taps - 1; ++q) {
        const Lanes value = value_of(from + q * step);
#pragma GCC unroll 8
        for (int t = 0; t < Taps; ++t) {
          if (q - t >= 0 && q - t < Pixels) sum[q - t] = times_plus(value, weights[t], sum[q - t]);
        }
      }
    }
  }
  const Lanes bias = load(a.bias + c);
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p) {
    Lanes y = sizeof(In) == 1 ? sum[p] * load(a.scale + c) : sum[p];
    y = y + bias;
    if constexpr (sizeof(Out) == 1) {
      to_levels(out + p * a.out_pixel, largest(smallest(y, all(a.top)), all(0.f)));
    } else {
      if (a.relu) y = smallest(largest(y, all(0.f)), all(a.most));
      store(out + p * a.out_pixel, y);
    }
  }
}

template <class In, class Out, int Taps>
void depthwise_taps(const DepthwiseArgs& a) {
  constexpr int kPixels = kLanes > 8 ? 8 : 4;
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(a.stride_w) * a.in_pixel;
  for (int h = 0; h < a.out_h; ++h) {
    const In* in = static_cast<const In*>(a.in) + h * a.stride_h * a.in_row;
    Out* out = static_cast<Out*>(a.out) + h * a.out_row;
    int w = 0;
    for (; w + kPixels <= a.out_w; w += kPixels) {
      for (int c = 0; c < a.channels; c += kLanes) {
        depthwise_piece<In, Out, Taps, kPixels>(a, in + w * step + c, c, out + static_cast<std::ptrdiff_t>(w) * a.out_pixel + c);
      }
    }
    for (; w < a.out_w; ++w) {
      for (int c = 0; c < a.channels; c += kLanes) {
        depthwise_piece<In, Out, 1, 1>(a, in + w * step + c, c, out + static_cast<std::ptrdiff_t>(w) * a.out_pixel + c);
      }
    }
  }
}

template <class In, class Out>
void depthwise(const DepthwiseArgs& a) {
  const bool plain = a.stride_w == 1 && a.dilation_w == 1;
  if (plain && a.kernel_w == 3) return depthwise_taps<In, Out, 3>(a);
  if (plain && a.kernel_w == 5) return depthwise_taps<In, Out, 5>(a);
  if (plain && a.kernel_w == 7 && kLanes > 8) return depthwise_taps<In, Out, 7>(a);
  depthwise_taps<In, Out, 1>(a);
}

}  // namespace
}  // namespace FRACSKIP_VALUES
}  // namespace fracskip
