#include "plan/convolution.hpp"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <map>

#include "interrupt.hpp"
#include "plan/winograd_bytes.hpp"

namespace fracskip {
namespace {

// [block][kernel_h][kernel_w][groups][kBlock][group], zero where there is no such channel. `ahead`: of a block's weights,
// so many zeros.
template <class To, class From>
Buffer pack_direct(const Conv& conv, const std::vector<From>& weight, int group, int multiple = 1, int ahead = 0) {
  const int blocks = round_up(conv.out, kBlock) / kBlock, groups = round_up(conv.in, std::max(group, multiple)) / group;
  const int taps = conv.window.kernel_h * conv.window.kernel_w;
  Buffer buffer(sizeof(To) * blocks * (static_cast<std::size_t>(ahead) + static_cast<std::size_t>(taps) * groups * kBlock * group));
  To* to = buffer.as<To>();
  for (int block = 0; block < blocks; ++block) {
    to += ahead;
    for (int tap = 0; tap < taps; ++tap) {
      for (int g = 0; g < groups; ++g) {
        for (int o = 0; o < kBlock; ++o) {
          for (int i = 0; i < group; ++i, ++to) {
            const int out = block * kBlock + o, in = g * group + i;
            if (out >= conv.out || in >= conv.in) continue;
            *to = static_cast<To>(weight[(static_cast<std::size_t>(out) * taps + tap) * conv.in + in]);
          }
        }
      }
    }
  }
  return buffer;
}

// A tile holds the weights of 64 bytes for 16 outputs: [16][kBlock][4] of levels, [16][kBlock][2] of bfloat16
// values.
// By chunks: [block][kernel_h][chunks]; a row of taps is a run of kernel_w * in bytes, cut into chunks.
// By quads: [block][kernel_h][fours][pixels that reach them]; the four's pixels are 16 bytes apart.
template <class To, class Weight>
Buffer pack_tiles(const Conv& conv, Element element, int pixel, Weight weight) {
  const Window& window = conv.window;
  const int line = 64 / static_cast<int>(sizeof(To)), group = line / 16, tile_size = 16 * line;
  const bool quads = tile_quads(element, conv.in, window.stride_h, window.stride_w);
  const int blocks = round_up(conv.out, kBlock) / kBlock, channels = pixel ? pixel : round_up(conv.in, kBlock);
  // Which tile of a row's, and which of its values, a tap has: once, or for each of four pixels.
  struct Place {
    int tile, value;
  };
  std::vector<std::vector<Place>> places(window.kernel_w);
  int tiles = 0;
  if (quads) {
    for (int four = 0; four < tile_fours(window.kernel_w); ++four) {
      for (int pixel = 0; pixel < 4; ++pixel) {
        if (!tile_reaches(window.kernel_w, pixel, four)) continue;
        for (int x = 0; x < window.kernel_w; ++x) {
          if ((pixel + x) / 4 == four) places[x].push_back({tiles, (pixel + x) % 4 * channels});
        }
        ++tiles;
      }
    }
  } else {
    tiles = tile_chunks(element, window.kernel_w, channels);
  }
  Buffer buffer(static_cast<std::size_t>(blocks) * window.kernel_h * tiles * kTileBytes);
  for (int out = 0; out < conv.out; ++out) {
    for (int y = 0; y < window.kernel_h; ++y) {
      const std::size_t row = static_cast<std::size_t>(out / kBlock) * window.kernel_h + y;
      To* to = buffer.as<To>() + row * tiles * tile_size;
      const auto put = [&](int tile, int value, To what) {
        to[tile * tile_size + (value / group * kBlock + out % kBlock) * group + value % group] = what;
      };
      for (int x = 0; x < window.kernel_w; ++x) {
        for (int in = 0; in < conv.in; ++in) {
          const auto from = ((static_cast<std::size_t>(out) * window.kernel_h + y) * window.kernel_w + x) * conv.in + in;
          const int value = x * channels + in;
          if (!quads) put(value / line, value % line, weight(from));
          for (const Place& place : places[x]) put(place.tile, place.value + in, weight(from));
        }
      }
    }
  }
  return buffer;
}

constexpr int kIntegerRows[kTileIn][3] = {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 1}};
constexpr double kFractions[kTileIn] = {1. / 4, -1. / 6, -1. / 6, 1. / 24, 1. / 24, 1.};

// G g Gᵀ; [block][position][groups][kBlock][group]. Integers leave the fractions out.
template <class To, class From>
Buffer pack_winograd(const Conv& conv, const std::vector<From>& weight, int group) {
  const int channels = round_up(conv.in, kBlock);
  const int blocks = round_up(conv.out, kBlock) / kBlock, groups = channels / group;
  Buffer buffer(sizeof(To) * blocks * kTileArea * groups * kBlock * group);
  To* to = buffer.as<To>();
  for (int out = 0; out < conv.out; ++out) {
    for (int in = 0; in < conv.in; ++in) {
      for (int i = 0; i < kTileIn; ++i) {
        for (int j = 0; j < kTileIn; ++j) {
          double sum = 0;
          for (int y = 0; y < 3; ++y) {
            for (int x = 0; x < 3; ++x) {
              const auto at = (static_cast<std::size_t>(out) * 9 + y * 3 + x) * conv.in + in;
              sum += static_cast<double>(kIntegerRows[i][y] * kIntegerRows[j][x]) * static_cast<double>(weight[at]);
            }
          }
          if (std::is_same_v<To, float>) sum *= kFractions[i] * kFractions[j];
          const int block = out / kBlock, position = i * kTileIn + j;
          const std::size_t vector = (static_cast<std::size_t>(block) * kTileArea + position) * groups + in / group;
          to[(vector * kBlock + out % kBlock) * group + in % group] = static_cast<To>(sum);
        }
      }
    }
  }
  return buffer;
}

// The largest |acc| of an output, whatever the levels.
std::int64_t reach_of(const Conv& conv, int out) {
  const std::size_t each = conv.weight_i8.size() / conv.out;
  std::int64_t positive = 0, negative = 0;
  for (std::size_t i = 0; i < each; ++i) {
    const int w = conv.weight_i8[out * each + i];
    (w > 0 ? positive : negative) += w;
  }
  return conv.most_level * std::max(positive, -negative);
}

// Whether every accumulator stays within the exact kernel's reach.
bool winograd_is_exact(const Conv& conv) {
  for (int o = 0; o < conv.out; ++o) {
    if (reach_of(conv, o) >= kWinogradLimit) return false;
  }
  return true;
}

// Whether every value, with a residual in levels, fits an int32 by far.
bool is_bounded(const Conv& conv) {
  constexpr float kMost = 1 << 30;
  for (int o = 0; o < conv.out; ++o) {
    if (!(static_cast<float>(reach_of(conv, o)) * std::abs(conv.scale[o]) + std::abs(conv.bias[o]) < kMost)) return false;
  }
  return true;
}

// How many groups of four channels, in the order of taps, the narrow kernel may add up in 16 bits, whatever the
// levels: each of them adds one pair's products to a sum.
int exact_run(const Conv& conv, int apart) {
  int most = 1;
  for (std::size_t row = 0; row < conv.weight_i8.size(); row += static_cast<std::size_t>(conv.in)) {
    for (int i = 0; i < conv.in; ++i) {
      if (i / apart % 2 == 1) continue;
      const int other = i + apart < conv.in ? conv.weight_i8[row + i + apart] : 0;
      most = std::max(most, std::abs(conv.weight_i8[row + i]) + std::abs(other));
    }
  }
  return std::numeric_limits<std::int16_t>::max() / (most * conv.most_level);
}

// -- which kernel executes a convolution ----------------------------------------------------------------

// Bytes of transformed weights, beyond which fetching them takes longer than Winograd's algorithm saves over the narrow kernel.
constexpr std::size_t kMostNarrowWinograd = std::size_t{2} << 20;
// The same of weights in bytes: of tiles of 4x2 over those of 2x2, and of either where the set's direct kernel takes weights of 8
// bits, which are fewer. There tiles of 4x2 are for weights so small that a whole network's stay near.
constexpr std::size_t kMostTall = std::size_t{4} << 20, kMostTallOverDirect = std::size_t{32} << 10, kMostOverDirect = std::size_t{2} << 20;

// A convolution that shall be executed, and what is known of it.
struct Wanted {
  const Conv& conv;
  const KernelSet& set;
  Forms forms;
  int run;  // of the narrow kernel; 0 where there is none
  mutable std::map<int, ByteWeights> in_bytes;  // by rows of a tile, those asked for so far

  bool integer() const { return conv.is_integer(); }
  bool narrow() const { return run >= kLeastRun; }
  bool fits_tiles() const { return conv.window.stride_h <= kTileStride && conv.window.stride_w <= kTileStride; }
  // The transforms of up to four channels take as long as for 16; tiles end within the border where an image keeps its size.
  bool fits_winograd() const {
    const Window& w = conv.window;
    return forms.winograd && conv.in > 4 && w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 && w.pad_top + w.pad_bottom == 2 && w.pad_left + w.pad_right == 2;
  }
  // Transformed weights are made to be proved.
  ByteWeights& bytes(int rows) const { return in_bytes.try_emplace(rows, conv, rows, set.byte_pairs).first->second; }
  // Sums of 32 bits cost in the outputs: with one block of channels more than fewer products save, and in any that must be widened often.
  // Rows of a tile that are not there may be anything to two others alone: four come from six that cancel out as levels do.
  bool fits_bytes(int rows, bool wide) const {
    if (rows == 4 && !forms.zeros) return false;
    const std::size_t size = static_cast<std::size_t>(byte_positions(rows)) * conv.in * conv.out;
    const bool over_direct = !set.winograd_int;
    if (rows == 4 && size > (over_direct ? kMostTallOverDirect : kMostTall)) return false;
    if (over_direct && size > kMostOverDirect) return false;
    if (!wide) return bytes(rows).short_sums();
    const bool worth = rows == 2 || conv.in > kBlock || !bytes(2).short_sums();
    return worth && bytes(rows).run() >= kByteRun;
  }
  bool winograd_beats_narrow() const {
    return !narrow() || sizeof(std::int16_t) * kTileArea * conv.in * conv.out <= kMostNarrowWinograd;
  }
};

struct Choice {
  const char* name;  // follows the set's
  ConvFunction KernelSet::*function;
  bool (*fits)(const Wanted&);
  Buffer (*pack)(const Wanted&);
  std::size_t (*scratch)(const ConvArgs&, const KernelSet&);
  int rows = 1;                    // of the output, made together
  bool begins_with_blocks = true;  // packed weights: else something comes before them
};

std::size_t no_scratch(const ConvArgs&, const KernelSet&) { return 0; }
std::size_t scratch_of_tiles(const ConvArgs& a, const KernelSet&) { return tile_scratch(a); }

template <class Element>
std::size_t scratch_of_winograd(const ConvArgs& a, const KernelSet&) {
  return winograd_scratch(a.in_channels, sizeof(Element));
}

// What sums begin with, for kernels that take levels less 128: 128 times the sum of an output's weights.
void put_offsets(const Conv& conv, Buffer& packed) {
  const std::size_t each = conv.weight_i8.size() / conv.out;
  const std::size_t block = packed.size() / (static_cast<std::size_t>(round_up(conv.out, kBlock)) / kBlock);
  for (int o = 0; o < conv.out; ++o) {
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < each; ++i) sum += conv.weight_i8[o * each + i];
    reinterpret_cast<std::int32_t*>(packed.as<char>() + o / kBlock * block)[o % kBlock] = 128 * sum;
  }
}

template <int Rows, bool Wide>
constexpr Choice in_bytes(const char* name, ConvFunction KernelSet::*function) {
  return {
      name,
      function,
      [](const Wanted& w) { return w.integer() && w.fits_winograd() && w.fits_bytes(Rows, Wide); },
      [](const Wanted& w) { return w.bytes(Rows).take(Wide); },
      [](const ConvArgs& a, const KernelSet&) { return byte_scratch(a.in_channels, Rows, Wide ? 4 : 2); },
      Rows,
      false,
  };
}

Buffer pack_integers(const Wanted& w) {
  const KernelSet& set = w.set;
  if (set.int_widens) return pack_direct<std::int16_t>(w.conv, w.conv.weight_i8, set.int_group);
  const int ahead = set.int_offsets ? kBlock * static_cast<int>(sizeof(std::int32_t)) : 0;
  Buffer packed = pack_direct<std::int8_t>(w.conv, w.conv.weight_i8, set.int_group, set.int_multiple, ahead);
  if (set.int_offsets) put_offsets(w.conv, packed);
  return packed;
}

// The first that the set has and that fits is taken; of the direct ones, one always does.
constexpr Choice kChoices[] = {
    {
        "_int8_tiles",
        &KernelSet::tiles_int,
        [](const Wanted& w) { return w.integer() && w.forms.tiles && w.fits_tiles(); },
        [](const Wanted& w) { return pack_tiles<std::int8_t>(w.conv, Element::u8, w.forms.pixel, [&](std::size_t i) { return w.conv.weight_i8[i]; }); },
        scratch_of_tiles,
    },
    {
        "_bf16_tiles",
        &KernelSet::tiles_bf16,
        [](const Wanted& w) { return w.forms.half; },
        [](const Wanted& w) {
          return pack_tiles<std::uint16_t>(w.conv, Element::bf16, w.forms.pixel, [&](std::size_t i) { return to_bf16(w.conv.weight_f32[i]); });
        },
        scratch_of_tiles,
    },
    in_bytes<4, false>("_int8_winograd_4x2", &KernelSet::winograd_4x2_short),
    in_bytes<4, true>("_int8_winograd_4x2_wide", &KernelSet::winograd_4x2_wide),
    in_bytes<2, false>("_int8_winograd_2x2", &KernelSet::winograd_2x2_short),
    in_bytes<2, true>("_int8_winograd_2x2_wide", &KernelSet::winograd_2x2_wide),
    {
        "_int8_winograd",
        &KernelSet::winograd_int,
        [](const Wanted& w) { return w.integer() && w.fits_winograd() && w.winograd_beats_narrow() && winograd_is_exact(w.conv); },
        [](const Wanted& w) { return pack_winograd<std::int16_t>(w.conv, w.conv.weight_i8, w.set.winograd_group); },
        scratch_of_winograd<std::int16_t>,
        kTile,
    },
    {
        "_fp32_winograd",
        &KernelSet::winograd_float,
        [](const Wanted& w) { return !w.integer() && w.fits_winograd(); },
        [](const Wanted& w) { return pack_winograd<float>(w.conv, w.conv.weight_f32, 1); },
        scratch_of_winograd<float>,
        kTile,
    },
    {
        "_int8_narrow",
        &KernelSet::conv_narrow,
        [](const Wanted& w) { return w.integer() && w.narrow(); },
        [](const Wanted& w) { return pack_direct<std::int8_t>(w.conv, w.conv.weight_i8, w.set.narrow_group, 4); },
        no_scratch,
    },
    {
        "_int8_direct",
        &KernelSet::conv_int,
        [](const Wanted& w) { return w.integer(); },
        pack_integers,
        [](const ConvArgs& a, const KernelSet& set) { return set.int_widens ? widened_scratch(a) : 0; },
    },
    {
        "_fp32_direct",
        &KernelSet::conv_float,
        [](const Wanted& w) { return !w.integer(); },
        [](const Wanted& w) { return pack_direct<float>(w.conv, w.conv.weight_f32, 1); },
        no_scratch,
    },
};

const Choice& choose(const Wanted& wanted) {
  return *std::find_if(std::begin(kChoices), std::end(kChoices), [&](const Choice& choice) { return wanted.set.*choice.function && choice.fits(wanted); });
}

}  // namespace

std::uint16_t to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

bool runs_in_bf16(const Window& window, const KernelSet& kernels) {
  return kernels.tiles_bf16 && window.stride_h <= kTileStride && window.stride_w <= kTileStride;
}

Convolution::Convolution(const Conv& conv, const KernelSet& set, Forms forms)
    : window_(conv.window), in_(conv.in), out_(conv.out), integer_(conv.is_integer()), set_(set) {
  check_interrupt();
  run_ = integer_ && set.conv_narrow && conv.most_level <= set.narrow_top ? exact_run(conv, set.narrow_apart) : 0;
  bounded_ = integer_ && is_bounded(conv);
  const Wanted wanted{conv, set, forms, run_, {}};
  const Choice& choice = choose(wanted);
  function_ = set.*choice.function;
  name_ = std::string(set.name) + choice.name;
  scratch_ = choice.scratch;
  weights_ = choice.pack(wanted);
  weight_bytes_ = weights_.size();
  const int out = round_up(out_, kBlock);
  rows_ = choice.rows;
  element_ = integer_ ? Element::u8 : choice.function == &KernelSet::tiles_bf16 ? Element::bf16 : Element::f32;
  block_bytes_ = choice.begins_with_blocks ? static_cast<std::ptrdiff_t>(weights_.size()) / (out / kBlock) : 0;
  if (integer_) scale_ = padded(conv.scale.data(), out_, out);
  bias_ = padded(conv.bias.data(), out_, out);
  packed_ = weights_.as<void>();
}

ConvArgs Convolution::arguments() const {
  ConvArgs a{};
  a.in_channels = in_;
  a.kernel_h = window_.kernel_h;
  a.kernel_w = window_.kernel_w;
  a.stride_h = window_.stride_h;
  a.stride_w = window_.stride_w;
  a.weights = packed_;
  a.run = run_;
  a.out_blocks = round_up(out_, kBlock) / kBlock;
  a.scale = integer_ ? scale_.as<float>() : nullptr;
  a.bias = bias_.as<float>();
  a.residual_type = Residual::none;
  a.out_type = Element::u8;
  a.input = 1.f;
  a.top = 255.f;
  a.most = std::numeric_limits<float>::infinity();
  return a;
}

Buffer gather_weights(const std::vector<std::unique_ptr<Convolution>>& convolutions) {
  const auto rounded = [](std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  std::size_t total = 0;
  for (const auto& conv : convolutions) total += rounded(conv->weights_.size());
  Buffer all(total);
  char* next = all.as<char>();
  for (const auto& conv : convolutions) {
    check_interrupt();
    std::memcpy(next, conv->weights_.as<void>(), conv->weights_.size());
    conv->packed_ = next;
    next += rounded(conv->weights_.size());
    conv->weights_ = Buffer();
  }
  return all;
}

}  // namespace fracskip
