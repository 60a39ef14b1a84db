// What a program's convolutions come to where they have groups or dilated taps: the weights of plain ones.
#pragma once

#include <memory>
#include <numeric>

#include "plan/convolution.hpp"
#include "plan/network.hpp"
#include "plan/steps.hpp"

namespace fracskip {

// Of a convolution's groups those of one piece, as one convolution: zeros where other groups' weights are. `top`: the largest
// level that it takes; `factor`: of float weights.
Conv piece_of(const Op& op, const Terms& terms, const Grouping& grouping, int piece, float top, float factor);

// Whether a depthwise convolution's kernels, which add up in float32, are exact.
bool is_exact(const Op& op, const Terms& terms, float top);

std::shared_ptr<const DepthwiseStep::Weights> depthwise_weights(const Op& op, const Terms& terms, int channels);

// What dilation comes to: a dilation of one tap is none.
struct Spread {
  int apart_h, apart_w, common_h, common_w;

  explicit Spread(const Op& op)
      : apart_h(op.window.kernel_h > 1 ? op.dilation_h : 1), apart_w(op.window.kernel_w > 1 ? op.dilation_w : 1),
        common_h(std::gcd(apart_h, op.window.stride_h)), common_w(std::gcd(apart_w, op.window.stride_w)) {}
  bool is_some() const { return apart_h > 1 || apart_w > 1; }
};

}  // namespace fracskip
