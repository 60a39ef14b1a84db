// The steps that programs come to. Arguments are complete but for pointers into a worker's memory.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "plan/plan.hpp"

namespace fracskip {

// A convolution: of pieces that lie side by side among the channels, one a set of groups. Where taps are dilated,
// every so many rows and columns are an image of their own (a phase), which a plain convolution goes through.
struct ConvolutionStep final : Step {
  struct Piece {
    const Convolution* conv;
    ConvArgs args;
    std::ptrdiff_t in, out;  // channels before it
  };

  std::vector<Piece> pieces;
  Place in, out, residual;               // `residual` may be none, or where `out` is
  std::ptrdiff_t first_tap = 0;          // from pixel (0, 0), in elements
  int phases_h = 1, phases_w = 1;
  int phase_h = 0, phase_w = 0;          // input pixels from phase to phase
  bool sums = false;                     // whether it adds up its channels

  void run(Memory& memory) const override {
    if (sums) std::memset(memory.sums.as<void>(), 0, static_cast<std::size_t>(out.layout.pixel) * sizeof(float));
    for (int h = 0; h < phases_h; ++h) {
      for (int w = 0; w < phases_w; ++w) {
        for (const Piece& piece : pieces) run(memory, piece, h, w);
      }
    }
  }

 private:
  void run(Memory& memory, const Piece& piece, int h, int w) const {
    ConvArgs a = piece.args;
    a.weights = piece.conv->weights();  // they were gathered after this was planned
    if (phases_h > 1 || phases_w > 1) {
      a.out_h = (a.out_h - h + phases_h - 1) / phases_h;
      a.out_w = (a.out_w - w + phases_w - 1) / phases_w;
      if (a.out_h <= 0 || a.out_w <= 0) return;
    }
    const Layout& from = in.layout;
    const std::ptrdiff_t first = first_tap + h * phase_h * from.row + static_cast<std::ptrdiff_t>(w) * phase_w * from.pixel + piece.in;
    const auto at = [&](const Place& place) {
      const Layout& l = place.layout;
      const std::ptrdiff_t pixel = h * l.row + static_cast<std::ptrdiff_t>(w) * l.pixel + piece.out;
      return memory.at(place) + pixel * static_cast<std::ptrdiff_t>(l.bytes_each());
    };
    a.in = memory.at(in) + first * static_cast<std::ptrdiff_t>(from.bytes_each());
    a.out = at(out);
    if (residual.is_some()) a.residual = at(residual);
    if (sums) a.sums = memory.sums.as<float>() + piece.out;
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

struct LevelMeanStep final : Step {
  LevelMeanFunction function;
  LevelMeanArgs args;
  Place in, out;

  void run(Memory& memory) const override {
    LevelMeanArgs a = args;
    a.in = reinterpret_cast<const std::uint8_t*>(memory.at(in));
    a.out = reinterpret_cast<float*>(memory.at(out));
    function(a);
  }
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
