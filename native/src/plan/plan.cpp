#include "plan/plan.hpp"

#include <algorithm>
#include <utility>

#include "plan/planner.hpp"

namespace fracskip {
namespace {

// Bytes of a shortcut's values from which it is executed strip by strip, and of a strip.
constexpr std::int64_t kLeastJoined = std::int64_t{512} << 10, kStrip = std::int64_t{128} << 10;

Layout result_of(const Program& program, const Layout& in) {
  std::vector<Layout> values = {in};
  for (const Op& op : program) values.push_back(result_of(op, values[static_cast<std::size_t>(op.in)]));
  return values.back();
}

// Whether a part, or its gate, begins with the means of channels.
bool wants_sums(const Part& part) {
  const auto takes_mean = [](const Op& op) { return op.kind == OpKind::mean && op.in == 0; };
  return part.gated || std::any_of(part.branch.begin(), part.branch.end(), takes_mean);
}

}  // namespace

void Planner::run(const Network& network) {
  integer_stream_ = network.integer_stream;
  Place at = plan_image(network);
  for (std::size_t i = 0; i < network.parts.size(); ++i) {
    at = plan_part(network, i, at);
    step_ = network.parts[i].step;
    zero_ = network.parts[i].zero;
  }
  plan_.weights = gather_weights(plan_.convolutions);
  for (ConvolutionStep* step : dense_) {
    for (ConvolutionStep::Piece& piece : step->pieces) piece.args.weights = piece.conv->weights();
  }
  plan_.buffer_bytes = memory_.bytes();
}

// Convolutions of the first part read the image as it is, or make levels of it; everything else needs a value like any other.
Place Planner::plan_image(const Network& network) {
  const Part& first = network.parts.front();
  const bool integer = first.ways.front().bits <= kMaxIntegerBits;
  int border = 0;
  bool as_it_is = true;
  for (const Op& op : first.branch) {
    if (!op.uses(0)) continue;
    const bool plain = integer || (op.groups == 1 && op.dilation_h == 1 && op.dilation_w == 1);
    as_it_is = as_it_is && op.kind == OpKind::conv && plain;
    if (!integer) border = std::max(border, border_of(op.window));
  }
  const Layout layout = Layout::make(network.height, network.width, network.channels, as_it_is ? border : 0, Element::f32, 1);
  plan_.image = memory_.acquire(layout, true);
  if (as_it_is) return plan_.image;
  auto step = std::make_unique<SpreadStep>();
  step->in = plan_.image;
  step->out = memory_.acquire(Layout::dense(layout.h, layout.w, network.channels, Element::f32), false);
  const Place value = step->out;
  course_ = &plan_.spread;
  add(std::move(step), "fp32_copy", {plan_.image, value});
  memory_.let_go(plan_.image);
  return value;
}

Place Planner::plan_part(const Network& network, std::size_t index, const Place& in) {
  const Part& part = network.parts[index];
  const bool last = index + 1 == network.parts.size();
  PlannedPart planned;
  planned.in = planned.out = in;
  if (in.is_levels()) planned.mean = mean_arguments(in);
  if (part.gated) plan_.most_channels = std::max(plan_.most_channels, in.layout.pixel);
  if (!part.hands_on()) {
    const Layout result = result_of(part.branch, in.layout);
    const bool levels = integer_stream_ && !last;
    planned.out = memory_.acquire(levels ? levels_of(result, border_for(network, index)) : result, true);
  }
  for (const Way& way : part.ways) {
    Course course;
    course.option = option_label(way.bits);
    plan_way(part, way, in, planned.out, course);
    course.sums = !last && wants_sums(network.parts[index + 1]) && add_up(course, planned.out);
    planned.options.push_back(std::move(course));
  }
  if (!part.hands_on()) memory_.let_go(in);
  const Place out = planned.out;
  plan_.parts.push_back(std::move(planned));
  return out;
}

// The border that a part's levels need for the convolutions that read them where they lie: the next part's, and those of the
// parts after it while the same levels are handed on.
int Planner::border_for(const Network& network, std::size_t index) const {
  int border = 0;
  if (network.parts[index].zero != 0) return border;
  const auto reach = [&](const Program& program, const std::vector<Terms>& terms) {
    for (std::size_t k = 0; k < terms.size(); ++k) {
      if (takes_first(program[k]) && terms[k].is_integer() && terms[k].input == 0.f) border = std::max(border, border_of(program[k].window));
    }
  };
  for (++index; index < network.parts.size(); ++index) {
    const Part& part = network.parts[index];
    for (const Way& way : part.ways) reach(part.branch, way.terms);
    reach(part.shortcut, part.shortcut_terms);
    if (!part.hands_on()) break;
  }
  return border;
}

// In float32 a shortcut's result is where the part's shall be, and the branch is added to it. Levels are not added to: it has
// a place of its own, unless it is all there is.
void Planner::plan_way(const Part& part, const Way& way, const Place& in, const Place& out, Course& course) {
  const bool skips = way.bits == kSkipBits;
  if (skips && !part.residual) return;
  End end{out, {}, part.after};
  Place own;
  if (part.residual) end.residual = out;
  if (!part.shortcut.empty()) {
    End shortcut{out, {}, {}};
    if (skips) shortcut.after = part.after;
    else if (out.is_levels()) shortcut.out = own = end.residual = memory_.acquire(result_of(part.shortcut, in.layout), false);
    plan_program(part.shortcut, part.shortcut_terms, part.shortcut_bits, in, shortcut, course);
  } else if (skips && !part.skip_is_identity && !out.is_levels()) {
    course_ = &course;
    for (Act act : part.after) pass(values_.act, out, {}, out, act);
  }
  // What the shortcut's last step reads is there until the branch has ended.
  Place read;
  const std::size_t shortcut = course.steps.size();
  if (own.is_some() && shortcut > 0) {
    const auto* last = dynamic_cast<const ConvolutionStep*>(course.steps.back().get());
    if (last && last->is_plain()) read.buffer = last->pieces.front().in.buffer;
  }
  if (read.is_some()) memory_.hold(read);
  if (!skips) plan_program(part.branch, way.terms, way.bits, in, end, course);
  if (read.is_some()) join(course, shortcut - 1, own);
  memory_.let_go(read);
  memory_.let_go(own);
}

// Makes a shortcut's last convolution a part of the branch's, whose residual it gives, where its values are many.
void Planner::join(Course& course, std::size_t shortcut, const Place& values) {
  auto* from = dynamic_cast<ConvolutionStep*>(course.steps[shortcut].get());
  auto* to = dynamic_cast<ConvolutionStep*>(course.steps.back().get());
  if (values.bytes() < kLeastJoined || !to || !to->is_plain() || from->out_buffer != values.buffer || to->pieces.front().residual.buffer != values.buffer) return;
  const int unit = std::max(from->pieces.front().conv->rows_together(), to->pieces.front().conv->rows_together());
  const int fit = static_cast<int>(kStrip / (values.bytes() / values.layout.h));
  to->strip_rows = std::max(fit / unit, 1) * unit;
  to->info.kernel = from->info.kernel + " + " + to->info.kernel;
  to->info.macs += from->info.macs;
  to->info.bytes += from->info.bytes - 2 * values.bytes();
  std::unique_ptr<Step> step = std::move(course.steps[shortcut]);
  course.steps.erase(course.steps.begin() + static_cast<std::ptrdiff_t>(shortcut));
  step.release();
  to->shortcut.reset(from);
}

// Makes the last step leave channel sums, if it can.
bool Planner::add_up(Course& course, const Place& out) {
  if (course.steps.empty()) return false;
  auto* last = dynamic_cast<ConvolutionStep*>(course.steps.back().get());
  if (!last || last->out_buffer != out.buffer) return false;
  plan_.most_channels = std::max(plan_.most_channels, out.layout.pixel);
  return last->sums = true;
}

void mean_of_levels(Memory& memory, LevelMeanFunction function, LevelMeanArgs args, const Place& in, float* out) {
  if (!memory.summed) {
    args.in = reinterpret_cast<const std::uint8_t*>(memory.at(in));
    args.out = out;
    return function(args);
  }
  // Nothing that the loop reads may seem to change with what it writes: it would not become vectors.
  const auto* sums = memory.sums.as<std::uint32_t>();
  const int pixels = args.h * args.w;
  for (int c = 0; c < args.used; ++c) out[c] = level_mean(sums[c], pixels, args.zero, args.step);
  for (int c = args.used; c < args.channels; ++c) out[c] = 0.f;
}

Plan::Plan(const Network& network, const KernelSet& kernels) { Planner(*this, kernels).run(network); }

}  // namespace fracskip
