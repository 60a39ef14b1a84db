// The steps that programs come to. Arguments are complete but for pointers into a worker's memory.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "plan/plan.hpp"

namespace fracskip {

// Where a convolution begins in a buffer. As small as can be, for of many steps each is fetched anew.
struct Spot {
  int buffer = -1;
  std::ptrdiff_t bytes = 0;
  std::ptrdiff_t phase_h = 0, phase_w = 0;  // bytes from phase to phase

  // `first`: elements from pixel (0, 0).
  static Spot of(const Place& place, std::ptrdiff_t first, int every_h = 1, int every_w = 1) {
    if (!place.is_some()) return {};
    const Layout& l = place.layout;
    const auto each = static_cast<std::ptrdiff_t>(l.bytes_each());
    return {place.buffer, (l.origin() + first) * each, every_h * l.row * each, static_cast<std::ptrdiff_t>(every_w) * l.pixel * each};
  }
  char* in(Memory& memory) const { return memory.buffers[static_cast<std::size_t>(buffer)].as<char>() + bytes; }
};

// A convolution: of pieces that lie side by side among the channels, one a set of groups. Where taps are dilated,
// every so many rows and columns are an image of their own (a phase), which a plain convolution goes through.
struct ConvolutionStep final : Step {
  struct Piece {
    const Convolution* conv;
    ConvArgs args;
    Spot in, out, residual;  // `residual` may be none, or where `out` is
    int channel;             // of its first output
  };

  std::vector<Piece> pieces;
  int phases_h = 1, phases_w = 1;
  int out_buffer = -1, channels = 0;  // of what it gives, padded
  bool sums = false;                  // whether it adds up its channels

  void run(Memory& memory) const override {
    if (sums) std::memset(memory.sums.as<void>(), 0, static_cast<std::size_t>(channels) * sizeof(float));
    for (int h = 0; h < phases_h; ++h) {
      for (int w = 0; w < phases_w; ++w) {
        for (const Piece& piece : pieces) run(memory, piece, h, w);
      }
    }
  }

 private:
  void run(Memory& memory, const Piece& piece, int h, int w) const {
    ConvArgs a = piece.args;
    if (phases_h > 1 || phases_w > 1) {
      a.out_h = (a.out_h - h + phases_h - 1) / phases_h;
      a.out_w = (a.out_w - w + phases_w - 1) / phases_w;
      if (a.out_h <= 0 || a.out_w <= 0) return;
    }
    const auto at = [&](const Spot& spot) { return spot.in(memory) + h * spot.phase_h + w * spot.phase_w; };
    a.in = at(piece.in);
    a.out = at(piece.out);
    if (piece.residual.buffer >= 0) a.residual = at(piece.residual);
    if (sums) a.sums = memory.sums.as<float>() + piece.channel;
    a.scratch = memory.scratch.as<void>();
    piece.conv->run(a);
  }
};

// One channel a group.
struct DepthwiseStep final : Step {
  struct Weights {
    Buffer taps, scale, bias;
  };

  DepthwiseFunction function;
  DepthwiseArgs args;
  std::shared_ptr<const Weights> weights;
  Place in, out;
  std::ptrdiff_t first_tap = 0;

  void run(Memory& memory) const override {
    DepthwiseArgs a = args;
    a.in = memory.at(in) + first_tap * static_cast<std::ptrdiff_t>(in.layout.bytes_each());
    a.out = memory.at(out);
    function(a);
  }
};

struct ValueStep final : Step {
  ValueFunction function;
  ValueArgs args;
  Buffer gain, bias;
  Place in, other, out;  // `other` of two values alone

  void run(Memory& memory) const override {
    ValueArgs a = args;
    a.in = reinterpret_cast<const float*>(memory.at(in));
    if (other.is_some()) a.other = reinterpret_cast<const float*>(memory.at(other));
    a.out = reinterpret_cast<float*>(memory.at(out));
    function(a);
  }
};

struct StageStep final : Step {
  StageFunction function;
  StageArgs args;
  Place in, factor, out;  // `factor` may be none

  void run(Memory& memory) const override {
    StageArgs a = args;
    a.in = memory.at(in);
    if (factor.is_some()) a.factor = reinterpret_cast<const float*>(memory.at(factor));
    a.out = memory.at(out);
    function(a);
  }
};

struct PoolStep final : Step {
  PoolFunction function;
  PoolArgs args;
  Place in, out;

  void run(Memory& memory) const override {
    PoolArgs a = args;
    a.in = memory.at(in);
    a.out = memory.at(out);
    function(a);
  }
};

// Values to levels of the stream, row by row.
struct RoundStep final : Step {
  RoundFunction function;
  RoundArgs args;  // of a row
  Place in, residual, out;  // `residual` may be none, or where `out` is

  void run(Memory& memory) const override {
    RoundArgs a = args;
    for (int h = 0; h < in.layout.h; ++h) {
      a.in = reinterpret_cast<const float*>(memory.row(in, h));
      if (residual.is_some()) a.residual = memory.row(residual, h);
      a.out = reinterpret_cast<std::uint8_t*>(memory.row(out, h));
      function(a);
    }
  }
};

// Of the levels that a part takes.
struct LevelMeanStep final : Step {
  LevelMeanFunction function;
  LevelMeanArgs args;
  Place in, out;

  void run(Memory& memory) const override { mean_of_levels(memory, function, args, in, reinterpret_cast<float*>(memory.at(out))); }
};

// An image's pixels, each with room for padded channels.
struct SpreadStep final : Step {
  Place in, out;

  void run(Memory& memory) const override {
    const Layout &from = in.layout, &to = out.layout;
    for (int h = 0; h < from.h; ++h) {
      const float* pixel = reinterpret_cast<const float*>(memory.at(in)) + h * from.row;
      float* value = reinterpret_cast<float*>(memory.at(out)) + h * to.row;
      for (int w = 0; w < from.w; ++w, pixel += from.pixel, value += to.pixel) {
        std::memcpy(value, pixel, static_cast<std::size_t>(from.c) * sizeof(float));
        std::memset(value + from.c, 0, static_cast<std::size_t>(to.pixel - from.c) * sizeof(float));
      }
    }
  }
};

}  // namespace fracskip
