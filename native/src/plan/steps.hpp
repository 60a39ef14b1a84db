// The steps that programs come to. Arguments are complete but for pointers into a worker's memory.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
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

  // Some rows of the image, and the row at which the values lie that are this strip's alone.
  struct Strip {
    int first, rows, values;
  };

  std::vector<Piece> pieces;
  int phases_h = 1, phases_w = 1;
  int height = 0;  // of what it gives
  // Gives the residual, in float32: strip by strip, so that it never leaves a near cache. Both are of one piece and no phases.
  std::unique_ptr<ConvolutionStep> shortcut;
  int strip_rows = 0;
  int out_buffer = -1, channels = 0;  // of what it gives, padded
  bool sums = false;                  // whether it adds up its channels

  // Sums are added up by channel, so who shares has some of the channels.
  void run(Memory& memory, Share share) const override {
    if (sums) clear_sums(memory, share);
    if (shortcut) return run_strips(memory, share);
    for (int h = 0; h < phases_h; ++h) {
      for (int w = 0; w < phases_w; ++w) {
        for (const Piece& piece : pieces) run(memory, piece, share, h, w);
      }
    }
  }
  bool can_be_shared() const override { return !sums || (!shortcut && pieces.size() == 1 && pieces.front().conv->block_bytes() > 0); }
  bool is_plain() const { return pieces.size() == 1 && phases_h == 1 && phases_w == 1; }

 private:
  void clear_sums(Memory& memory, Share share) const {
    int blocks = channels / kBlock;
    const int first = share.take(blocks);
    std::memset(memory.sums.as<float>() + first * kBlock, 0, static_cast<std::size_t>(blocks) * kBlock * sizeof(float));
  }

  void run_strips(Memory& memory, Share share) const {
    int rows = height;
    const int begin = share.take(rows, std::max(pieces.front().conv->rows_together(), shortcut->pieces.front().conv->rows_together()));
    for (int row = 0; row < rows; row += strip_rows) {
      const Strip strip{begin + row, std::min(strip_rows, rows - row), begin};
      shortcut->run(memory, strip, share.index, true);
      run(memory, strip, share.index, false);
    }
  }

  void run(Memory& memory, const Strip& strip, std::size_t scratch, bool gives_values) const {
    const Piece& piece = pieces.front();
    ConvArgs a = piece.args;
    const bool by_rows = a.out_h > 1 || height == 1;  // else one long row
    const int width = by_rows ? a.out_w : a.out_w / height;
    const auto rows = [&](int count, std::ptrdiff_t row, std::ptrdiff_t pixel) { return count * (by_rows ? row : width * pixel); };
    a.in = piece.in.in(memory);
    a.out = piece.out.in(memory);
    forward(a.in, rows(strip.first, a.stride_h * a.in_row, static_cast<std::ptrdiff_t>(a.stride_w) * a.in_pixel), piece.conv->element());
    forward(a.out, rows(gives_values ? strip.values : strip.first, a.out_row, a.out_pixel), a.out_type);
    if (!gives_values) {
      a.residual = piece.residual.in(memory);
      forward(a.residual, rows(strip.values, a.residual_row, a.residual_pixel), Element::f32);
    }
    if (by_rows) a.out_h = strip.rows;
    else a.out_w = strip.rows * width;
    if (sums) a.sums = memory.sums.as<float>() + piece.channel;
    a.scratch = memory.scratch[scratch].as<void>();
    piece.conv->run(a);
  }

  void run(Memory& memory, const Piece& piece, Share share, int h, int w) const {
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
    a.scratch = memory.scratch[share.index].as<void>();
    if (share.count > 1 && !narrow(a, piece, share)) return;
    piece.conv->run(a);
  }

  // Leaves of a convolution what a share has of it: some rows, or some output channels where weights are what takes most to
  // fetch, or where channels are summed up. Gives whether that is anything.
  bool narrow(ConvArgs& a, const Piece& piece, Share share) const {
    const std::ptrdiff_t pixels = static_cast<std::ptrdiff_t>(a.out_h) * a.out_w;
    const std::ptrdiff_t values = pixels * (a.stride_h * a.stride_w * a.in_channels * static_cast<std::ptrdiff_t>(size_of(piece.conv->element())) + a.out_blocks * kBlock * static_cast<std::ptrdiff_t>(size_of(a.out_type)));
    if (sums || a.out_blocks * piece.conv->block_bytes() > values) {
      const int block = share.take(a.out_blocks);
      a.weights = static_cast<const char*>(a.weights) + block * piece.conv->block_bytes();
      if (a.scale) a.scale += block * kBlock;
      a.bias += block * kBlock;
      if (a.sums) a.sums = static_cast<float*>(a.sums) + block * kBlock;
      forward(a.out, block * kBlock, a.out_type);
      if (a.residual) forward(a.residual, block * kBlock, a.residual_type == Residual::u8 ? Element::u8 : Element::f32);
      return a.out_blocks > 0;
    }
    const bool by_rows = a.out_h > 1;  // else one long row
    const int first = by_rows ? share.take(a.out_h, piece.conv->rows_together()) : share.take(a.out_w, kTile * kTile);
    forward(a.in, first * (by_rows ? a.stride_h * a.in_row : static_cast<std::ptrdiff_t>(a.stride_w) * a.in_pixel), piece.conv->element());
    forward(a.out, first * (by_rows ? a.out_row : a.out_pixel), a.out_type);
    if (a.residual) forward(a.residual, first * (by_rows ? a.residual_row : a.residual_pixel), a.residual_type == Residual::u8 ? Element::u8 : Element::f32);
    return a.out_h > 0 && a.out_w > 0;
  }

  template <class Pointer>
  static void forward(Pointer& pointer, std::ptrdiff_t elements, Element element) {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
    pointer = static_cast<Byte*>(pointer) + elements * static_cast<std::ptrdiff_t>(size_of(element));
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

  void run(Memory& memory, Share share) const override {
    DepthwiseArgs a = args;
    const int row = share.take(a.out_h);
    if (a.out_h == 0) return;
    a.in = memory.at(in) + (first_tap + row * a.stride_h * a.in_row) * static_cast<std::ptrdiff_t>(in.layout.bytes_each());
    a.out = memory.row(out, row);
    function(a);
  }
};

struct ValueStep final : Step {
  ValueFunction function;
  ValueArgs args;
  Buffer gain, bias;
  Place in, other, out;  // `other` of two values alone
  bool by_pixel = true;  // else of all pixels: a mean

  void run(Memory& memory, Share share) const override {
    ValueArgs a = args;
    const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(share.take(a.pixels)) * a.channels;
    if (a.pixels == 0) return;
    a.in = reinterpret_cast<const float*>(memory.at(in)) + first;
    if (other.is_some()) a.other = reinterpret_cast<const float*>(memory.at(other)) + (a.spread ? 0 : first);
    a.out = reinterpret_cast<float*>(memory.at(out)) + first;
    function(a);
  }
  bool can_be_shared() const override { return by_pixel; }
};

struct StageStep final : Step {
  StageFunction function;
  StageArgs args;
  Place in, factor, out;  // `factor` may be none

  void run(Memory& memory, Share share) const override {
    StageArgs a = args;
    const int row = share.take(a.h);
    if (a.h == 0) return;
    a.in = memory.at(in) + row * a.in_row * static_cast<std::ptrdiff_t>(in.layout.bytes_each());
    if (factor.is_some()) a.factor = reinterpret_cast<const float*>(memory.at(factor));
    a.out = memory.row(out, row);
    function(a);
  }
  bool can_be_shared() const override { return args.border == 0; }
};

struct PoolStep final : Step {
  PoolFunction function;
  PoolArgs args;
  Place in, out;

  void run(Memory& memory, Share share) const override {
    PoolArgs a = args;
    const int row = share.take(a.out_h);
    if (a.out_h == 0) return;
    // Of the input, what begins with the first window's first row.
    const int begin = row * a.stride_h - a.pad_top, above = std::max(begin, 0);
    a.pad_top = above - begin;
    a.in_h -= above;
    a.in = memory.row(in, above);
    a.out = memory.row(out, row);
    function(a);
  }
};

// Values to levels of the stream, row by row.
struct RoundStep final : Step {
  RoundFunction function;
  RoundArgs args;  // of a row
  Place in, residual, out;  // `residual` may be none, or where `out` is

  void run(Memory& memory, Share share) const override {
    RoundArgs a = args;
    int rows = in.layout.h;
    const int first = share.take(rows);
    for (int h = first; h < first + rows; ++h) {
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

  void run(Memory& memory, Share) const override { mean_of_levels(memory, function, args, in, reinterpret_cast<float*>(memory.at(out))); }
  bool can_be_shared() const override { return false; }
};

// An image's pixels, each with room for padded channels.
struct SpreadStep final : Step {
  Place in, out;

  void run(Memory& memory, Share) const override {
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
  bool can_be_shared() const override { return false; }
};

}  // namespace fracskip
