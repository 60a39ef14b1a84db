#include "plan/graph_plan.hpp"

#include <algorithm>
#include <utility>

#include "plan/graph_planner.hpp"

namespace fracskip {
namespace {

Layout result_of(const Program& program, const Layout& in) {
  std::vector<Layout> values = {in};
  for (const Op& op : program) values.push_back(result_of(op, values[static_cast<std::size_t>(op.in)]));
  return values.back();
}

}  // namespace

void Planner::run(const GraphNetwork& network) {
  integer_stream_ = network.integer_stream;
  Place at = plan_image(network);
  for (std::size_t i = 0; i < network.parts.size(); ++i) {
    const Part& part = network.parts[i];
    const bool last = i + 1 == network.parts.size();
    at = plan_part(part, at, last, !last && network.parts[i + 1].gated);
    step_ = part.step;
    zero_ = part.zero;
  }
  plan_.weights = gather_weights(plan_.convolutions);
  plan_.buffer_bytes = memory_.bytes();
}

// Convolutions of the first part read the image as it is, or make levels of it; everything else needs a value like any other.
Place Planner::plan_image(const GraphNetwork& network) {
  const Part& first = network.parts.front();
  int border = 0;
  bool as_it_is = !first.gated && !first.branch.empty();
  for (const Op& op : first.branch) {
    if (!op.uses(0)) continue;
    const bool plain = integer_stream_ || (op.groups == 1 && op.dilation_h == 1 && op.dilation_w == 1);
    as_it_is = as_it_is && op.kind == OpKind::conv && plain;
    if (!integer_stream_) border = std::max(border, border_of(op.window));
  }
  const Layout layout = Layout::make(network.height, network.width, network.channels, as_it_is ? border : 0, Element::f32, false);
  plan_.image = memory_.acquire(layout, true);
  if (as_it_is) return plan_.image;
  auto step = std::make_unique<SpreadStep>();
  step->in = plan_.image;
  step->out = memory_.acquire(Layout::dense(layout.h, layout.w, network.channels, Element::f32), false);
  const Place value = step->out;
  plan_.spread.steps.push_back(std::move(step));
  memory_.let_go(plan_.image);
  return value;
}

Place Planner::plan_part(const Part& part, const Place& in, bool last, bool to_gate) {
  PlannedPart planned;
  planned.in = planned.out = in;
  planned.step = step_;
  planned.zero = zero_;
  const bool identity = (part.branch.empty() && !(integer_stream_ && last)) || (part.can_skip && part.shortcut.empty());
  if (part.gated) plan_.most_channels = std::max(plan_.most_channels, in.layout.pixel);
  if (!identity) {
    const Layout result = result_of(part.branch, in.layout);
    planned.out = memory_.acquire(Layout::dense(result.h, result.w, result.c, integer_stream_ && !last ? Element::u8 : Element::f32), false);
  }
  for (const Way& way : part.ways) {
    Course course;
    plan_way(part, way, in, planned.out, course);
    course.sums = to_gate && add_up(course, planned.out);
    planned.options.push_back(std::move(course));
  }
  if (!identity) memory_.let_go(in);
  const Place out = planned.out;
  plan_.parts.push_back(std::move(planned));
  return out;
}

// In float32 a shortcut's result is where the part's shall be, and the branch is added to it. Levels are not added to: it has
// a place of its own, unless it is all there is.
void Planner::plan_way(const Part& part, const Way& way, const Place& in, const Place& out, Course& course) {
  const bool skips = way.bits == kSkipBits;
  if (skips && !part.can_skip) return;
  End end{out, {}, part.after};
  Place own;
  if (part.can_skip) end.residual = out;
  if (!part.shortcut.empty()) {
    End shortcut{out, {}, {}};
    if (skips) shortcut.after = part.after;
    else if (out.is_levels()) shortcut.out = own = end.residual = memory_.acquire(result_of(part.shortcut, in.layout), false);
    plan_program(part.shortcut, part.shortcut_terms, integer_stream_ ? kStreamBits : 0, in, shortcut, course);
  } else if (skips && !part.hands_on && !out.is_levels()) {
    course_ = &course;
    for (Act act : part.after) pass(values_.act, out, {}, out, act);
  }
  if (!skips && !(part.branch.empty() && in.buffer == out.buffer)) {
    plan_program(part.branch, way.terms, way.bits <= kMaxIntegerBits ? way.bits : 0, in, end, course);
  }
  memory_.let_go(own);
}

// Makes the last step leave channel sums, if it can.
bool Planner::add_up(Course& course, const Place& out) {
  if (course.steps.empty()) return false;
  auto* last = dynamic_cast<ConvolutionStep*>(course.steps.back().get());
  if (!last || last->out.buffer != out.buffer) return false;
  plan_.most_channels = std::max(plan_.most_channels, out.layout.pixel);
  return last->sums = true;
}

GraphPlan::GraphPlan(const GraphNetwork& network, const KernelSet& kernels) { Planner(*this, kernels).run(network); }

}  // namespace fracskip
