// How a network's parts become steps. The parts are plan.cpp's, what their programs do programs.cpp's, and convolutions
// convolutions.cpp's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "plan/plan_memory.hpp"
#include "plan/plan.hpp"
#include "plan/steps.hpp"

namespace fracskip {

// Kernels know no edges: as wide as the widest padding, on every side.
inline int border_of(const Window& window) { return window.widest_pad(); }

// Whether it leaves pixels out.
inline bool is_sparse(const Window& w) {
  return w.kernel_h == 1 && w.kernel_w == 1 && !w.pads() && (w.stride_h > 1 || w.stride_w > 1);
}

inline bool is_clamp(Act act) { return act == Act::none || act == Act::relu || act == Act::relu6; }

Layout result_of(const Op& op, const Layout& in);  // a plain value: float32, dense

// The same pixels and channels in a form that convolutions read.
inline Layout form_of(const Layout& like, int border, Element element) {
  return border > 0 ? Layout::make(like.h, like.w, like.c, border, element) : Layout::dense(like.h, like.w, like.c, element);
}
inline Layout levels_of(const Layout& like, int border) { return form_of(like, border, Element::u8); }

class Planner {
 public:
  Planner(Plan& plan, const KernelSet& set) : plan_(plan), set_(set), values_(*set.values) {}

  void run(const Network& network);

 private:
  // A value of a program while it is planned.
  struct Value {
    Place place;          // nothing, where what gives it has another op in it already
    int uses = 0;         // to come
    bool stream = false;  // levels that the part takes
    Place plain;          // those in float32, once an op needs them so
    bool levels = false;  // in the form that its takers read, as levels
    Act act = Act::none;  // still to be executed, as is
    Place factor;         // this product, by the taker's stage
  };

  // What becomes of a program's last value.
  struct End {
    Place out;
    Place residual;          // is added, if there is one; may be where `out` is
    std::vector<Act> after;  // then
  };

  // What a convolution's epilogue does besides its own: the sum and the clamp that come next, if they are all there is.
  struct Tail {
    std::size_t last;  // op
    Act act;
    Place residual;
    bool may_overwrite = false;
  };

  // The levels that all who take a value want of it, if they agree.
  struct Reading {
    float input = 0.f, top = 0.f;  // 0: they do not
    int border = 0;
  };

  // The memory in which a convolution leaves its result, and the clamp to it.
  struct Target {
    Place out, residual;
    Act act = Act::none;
    float input = 1.f, top = 0.f;  // of levels
  };

  // -- parts
  Place plan_image(const Network& network);
  Place plan_part(const Network& network, std::size_t index, const Place& in);
  int border_for(const Network& network, std::size_t index) const;
  void plan_way(const Part& part, const Way& way, const Place& in, const Place& out, Course& course);
  void join(Course& course, std::size_t shortcut, const Place& values);
  bool add_up(Course& course, const Place& out);

  // -- programs, of an option's width
  void plan_program(const Program& program, const std::vector<Terms>& terms, int bits, const Place& in, const End& end, Course& course);
  void used(int value);
  void finish();
  void round_off(const Place& in, Act act);
  template <class AnyStep>
  AnyStep& add(std::unique_ptr<AnyStep> step, const std::string& kernel, std::initializer_list<Place> touched, std::int64_t macs = 0, std::size_t weight_bytes = 0) {
    step->info = {std::string(set_.name) + "_" + kernel, macs, static_cast<std::int64_t>(weight_bytes)};
    for (const Place& place : touched) step->info.bytes += place.bytes();
    AnyStep& added = *step;
    course_->steps.push_back(std::move(step));
    return added;
  }
  const char* name_of(ValueFunction function) const;
  ValueStep& pass(ValueFunction function, const Place& in, const Place& other, const Place& out, Act act);
  const Op* taker_of(std::size_t value) const;
  const Terms& terms_of(const Op& op) const { return (*terms_)[static_cast<std::size_t>(&op - program_->data())]; }
  bool stages(const Op& op) const;
  bool ends(std::size_t op) const { return op + 1 == program_->size(); }
  Place plain(int value);
  Place destination(std::size_t k, bool may_overwrite);
  void plan_value(std::size_t k);
  void plan_pair(std::size_t k);
  void plan_pool(std::size_t k);
  void plan_mean(std::size_t k);
  LevelMeanArgs mean_arguments(const Place& in) const;

  // -- convolutions
  StageStep& stage(StageFunction function, const char* kernel, const Value& in, const Place& out);
  bool runs_in_half(const Op& op) const;
  Place staged(const Op& op, const Terms& terms, bool half, const Value& in);
  Layout form_for_takers(std::size_t value, const Layout& result, Act act, bool half) const;
  Reading reading_of(std::size_t value);
  Reading find_reading(std::size_t value);
  Tail tail_of(std::size_t k, const Layout& result);
  bool goes_to_end(const Tail& tail, std::size_t k, const Place& in, bool depthwise) const;
  void plan_conv(std::size_t k);
  Target target_of(std::size_t k, const Tail& tail, const Place& in, const Layout& result, bool depthwise, bool half);
  void plan_depthwise(const Op& op, const Terms& terms, const Place& in, const Target& target);
  void plan_dense(const Op& op, const Terms& terms, bool half, const Place& in, const Target& target);
  const std::vector<const Convolution*>& pieces_of(const Op& op, const Terms& terms, bool half, const Grouping& grouping, int pixel);

  Plan& plan_;
  const KernelSet& set_;
  const ValueKernels& values_;
  PlanMemory memory_;
  bool integer_stream_ = false;

  // Of the part that is planned: the levels that it takes.
  float step_ = 1.f;
  int zero_ = 0;

  std::vector<ConvolutionStep*> dense_;  // steps whose weights are to be gathered

  // Weights made ready: options have their part's shortcut in common.
  std::map<std::tuple<const Terms*, int, int>, std::vector<const Convolution*>> made_;
  std::map<const Terms*, std::shared_ptr<const DepthwiseStep::Weights>> made_depthwise_;

  // Of the program that is planned.
  const Program* program_ = nullptr;
  const std::vector<Terms>* terms_ = nullptr;
  const End* end_ = nullptr;
  float top_ = 0.f;    // of its integers
  bool half_ = false;  // whether its width may be executed in bfloat16
  Course* course_ = nullptr;
  std::vector<Value> now_;
  std::vector<bool> absorbed_;  // ops that a convolution before does
  std::vector<std::vector<std::size_t>> takers_;   // ops, by value
  std::vector<std::optional<Reading>> readings_;   // those asked for so far, by value
  std::size_t last_done_ = 0;   // activations of the end that the last step has in it
};

}  // namespace fracskip
