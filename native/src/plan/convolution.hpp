// A convolution made ready for one instruction set: weights packed, kernel chosen.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/common/kernels.hpp"
#include "plan/memory.hpp"
#include "plan/network.hpp"

namespace fracskip {

// Largest |acc| that the exact integer Winograd kernel can bring back; see winograd.inl.
inline constexpr std::int64_t kWinogradLimit = std::int64_t{1} << 25;

// What a convolution computes. Weights are (out, kernel_h, kernel_w, in), C order; exactly one of the two is filled.
struct Conv {
  int in = 0, out = 0;
  Window window;
  std::vector<std::int8_t> weight_i8;
  std::vector<float> weight_f32;
  std::vector<float> scale;  // per output channel; integer convolutions only
  std::vector<float> bias;   // per output channel
  int most_level = 255;      // of what it takes; integer convolutions only

  bool is_integer() const { return !weight_i8.empty(); }
};

// Whether the set can execute such a convolution in bfloat16.
bool runs_in_bf16(const Window& window, const KernelSet& kernels);

// bfloat16's bits of a value: to the nearest, of two the even one.
std::uint16_t to_bf16(float value);

// Forms of execution that a convolution's place in a network allows.
struct Forms {
  bool winograd = true;
  bool half = false;   // in bfloat16, where the set has kernels for it; see `runs_in_bf16`
  bool tiles = true;   // of integers: input whose pixels lie side by side and have no channels but these
  int pixel = 0;       // of tiles: bytes or values from one of the input's to the next; 0: channels padded to `kBlock`
  bool zeros = true;   // beyond the input's border, up to whole tiles, lie zeros, not just anything
};

class Convolution {
 public:
  Convolution(const Conv& conv, const KernelSet& set, Forms forms);

  // The arguments that do not depend on where activations lie. Pointers stay valid while the
  // convolution is not moved from or destroyed.
  ConvArgs arguments() const;
  void run(const ConvArgs& args) const { function_(args); }

  // Whether levels of its values need no other clamp than packing; see `Result`.
  bool bounds(const ConvArgs& args) const {
    return bounded_ && args.out_type == Element::u8 && args.input == 1.f && args.residual_type != Residual::f32;
  }

  const void* weights() const { return packed_; }

  std::size_t weight_bytes() const { return weight_bytes_; }  // packed

  // Of packed weights, from one block of output channels to the next; 0 where they can't be taken one by one.
  std::ptrdiff_t block_bytes() const { return block_bytes_; }
  int rows_together() const { return rows_; }   // of the output: a tile's
  Element element() const { return element_; }  // of what it takes

  // Needs the output's size and the strides.
  std::size_t scratch_bytes(const ConvArgs& args) const { return scratch_(args, set_); }
  const std::string& kernel_name() const { return name_; }
  const Window& window() const { return window_; }
  int in() const { return in_; }
  int out() const { return out_; }
  bool is_integer() const { return integer_; }

 private:
  Window window_;
  int in_, out_;
  bool integer_;
  const KernelSet& set_;
  int run_;       // see ConvArgs
  bool bounded_;  // whether values fit an int32 in the unit of its scale
  int rows_;      // see rows_together
  Element element_;
  std::ptrdiff_t block_bytes_;
  std::size_t weight_bytes_;
  friend Buffer gather_weights(const std::vector<std::unique_ptr<Convolution>>& convolutions);

  ConvFunction function_;
  std::string name_;
  const void* packed_ = nullptr;  // the weights: its own, or gathered
  Buffer weights_, scale_, bias_;
  std::size_t (*scratch_)(const ConvArgs&, const KernelSet&);
};

// Moves packed weights into one buffer, in order, which must live as long as the convolutions.
Buffer gather_weights(const std::vector<std::unique_ptr<Convolution>>& convolutions);

}  // namespace fracskip
