#include "graph_plan.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <utility>

#include "graph_steps.hpp"

namespace fracskip {
namespace {

constexpr int kNothing = -1;
// Integers to which float32 is exact: a depthwise convolution's sums must stay below.
constexpr std::int64_t kExactFloats = std::int64_t{1} << 24;

// Bytes of a float convolution's transformed weights, beyond which fetching them takes longer than Winograd's algorithm saves.
constexpr std::size_t kMostWinograd = std::size_t{4} << 20;

int border_of(const Window& window) { return std::max(window.pad_h, window.pad_w); }

// Whether it leaves pixels out.
bool is_sparse(const Window& w) {
  return w.kernel_h == 1 && w.kernel_w == 1 && w.pad_h == 0 && w.pad_w == 0 && (w.stride_h > 1 || w.stride_w > 1);
}

bool is_clamp(Act act) { return act == Act::none || act == Act::relu || act == Act::relu6; }

template <class Args>
void set_clamp(Args& args, Act act) {
  args.relu = act != Act::none;
  args.most = act == Act::relu6 ? 6.f : std::numeric_limits<float>::infinity();
}

Buffer padded(const float* values, int count, int room) {
  Buffer buffer(sizeof(float) * static_cast<std::size_t>(room));
  std::copy_n(values, count, buffer.as<float>());
  return buffer;
}

// Of a convolution's groups those of one piece, as one convolution: zeros where other groups' weights are.
Conv piece_of(const Op& op, const Terms& terms, const Grouping& grouping, int piece) {
  const int first = piece * grouping.together, groups = std::min(grouping.together, op.groups - first);
  const int taken = op.taken / op.groups, given = op.given / op.groups;
  const int taps = op.window.kernel_h * op.window.kernel_w;
  Conv conv;
  conv.in = groups * taken;
  conv.out = groups * given;
  conv.window = op.window;
  const auto spread = [&](const auto& from, auto& to) {
    to.assign(static_cast<std::size_t>(conv.out) * taps * conv.in, 0);
    for (int o = 0; o < conv.out; ++o) {
      const int group = o / given;
      for (int tap = 0; tap < taps; ++tap) {
        const auto row = (static_cast<std::size_t>(first) * given + o) * taps + tap;
        std::copy_n(&from[row * taken], taken, &to[(static_cast<std::size_t>(o) * taps + tap) * conv.in + group * taken]);
      }
    }
  };
  if (terms.is_integer()) {
    spread(terms.weight_i8, conv.weight_i8);
    conv.scale.assign(&terms.scale[static_cast<std::size_t>(first) * given], &terms.scale[static_cast<std::size_t>(first) * given] + conv.out);
  } else {
    spread(terms.weight_f32, conv.weight_f32);
  }
  conv.bias.assign(&terms.bias[static_cast<std::size_t>(first) * given], &terms.bias[static_cast<std::size_t>(first) * given] + conv.out);
  return conv;
}

// Whether a depthwise convolution's kernels, which add up in float32, are exact.
bool is_exact(const Op& op, const Terms& terms, float top) {
  const auto taps = static_cast<std::size_t>(op.window.kernel_h) * op.window.kernel_w;
  for (std::size_t c = 0; c < terms.weight_i8.size() / taps; ++c) {
    std::int64_t sum = 0;
    for (std::size_t tap = 0; tap < taps; ++tap) sum += std::abs(terms.weight_i8[c * taps + tap]);
    if (sum * static_cast<std::int64_t>(top) >= kExactFloats) return false;
  }
  return true;
}

// A value of a program while it is planned.
struct Value {
  Place place;
  int uses = 0;              // to come
  bool levels = false;       // in the form its one taker reads, as levels
  Act act = Act::none;       // still to be executed, as is
  Place factor;              // this product, by that taker's stage
};

// What becomes of a program's last value.
struct End {
  Place out;
  bool adds = false;        // to what is there
  std::vector<Act> after;  // then
};

class Planner {
 public:
  Planner(GraphPlan& plan, const KernelSet& set) : plan_(plan), set_(set), values_(*set.values) {}

  void run(const GraphNetwork& network) {
    Place at = plan_image(network);
    for (std::size_t i = 0; i < network.parts.size(); ++i) {
      const bool to_gate = i + 1 < network.parts.size() && network.parts[i + 1].gated;
      at = plan_part(network.parts[i], at, to_gate);
    }
    plan_.weights = gather_weights(plan_.convolutions);
    for (const Memory& memory : memory_) plan_.buffer_bytes.push_back(memory.bytes);
  }

 private:
  // -- memory: a buffer is free once nothing refers to it ------------------------------------------------

  struct Memory {
    std::size_t bytes = 0;
    int users = 0;
    bool clean = false;  // has a border of zeros that nobody writes, and so one form
    Layout form;
  };

  // `clean`: with a border that is 0 already.
  Place acquire(const Layout& layout, bool clean) {
    clean = clean && layout.border > 0;
    const std::size_t bytes = layout.bytes();
    int best = kNothing;
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      const Memory& memory = memory_[i];
      if (memory.users > 0 || memory.clean != clean) continue;
      if (clean) {
        if (memory.form == layout) best = static_cast<int>(i);
      } else if (best == kNothing || fits_better(memory.bytes, memory_[static_cast<std::size_t>(best)].bytes, bytes)) {
        best = static_cast<int>(i);
      }
    }
    if (best == kNothing) {
      best = static_cast<int>(memory_.size());
      memory_.emplace_back();
      memory_.back().clean = clean;
      memory_.back().form = layout;
    }
    Memory& memory = memory_[static_cast<std::size_t>(best)];
    memory.bytes = std::max(memory.bytes, bytes);
    ++memory.users;
    return {best, layout};
  }
  // The smallest that is large enough; or else the largest, which then grows.
  static bool fits_better(std::size_t bytes, std::size_t other, std::size_t wanted) {
    return other < wanted ? bytes > other : bytes >= wanted && bytes < other;
  }
  int& users(const Place& place) { return memory_[static_cast<std::size_t>(place.buffer)].users; }
  void hold(const Place& place) { ++users(place); }
  void let_go(const Place& place) {
    if (place.buffer != kNothing) --users(place);
  }

  static Layout dense(const Layout& like, int channels) { return Layout::dense(like.h, like.w, channels, Element::f32); }

  // -- parts ----------------------------------------------------------------------------------------------

  // Convolutions of the first part read the image as it is; everything else needs a value like any other.
  Place plan_image(const GraphNetwork& network) {
    const Part& first = network.parts.front();
    int border = 0;
    bool as_it_is = !first.gated && !first.branch.empty();
    for (const Op& op : first.branch) {
      if (!op.uses(0)) continue;
      as_it_is = as_it_is && op.kind == OpKind::conv && op.groups == 1 && op.dilation_h == 1 && op.dilation_w == 1;
      border = std::max(border, border_of(op.window));
    }
    const Layout layout = Layout::make(network.height, network.width, network.channels, as_it_is ? border : 0, Element::f32, false);
    plan_.image = acquire(layout, true);
    if (as_it_is) return plan_.image;
    auto step = std::make_unique<SpreadStep>();
    step->in = plan_.image;
    step->out = acquire(dense(layout, network.channels), false);
    const Place value = step->out;
    plan_.spread.steps.push_back(std::move(step));
    let_go(plan_.image);
    return value;
  }

  Place plan_part(const Part& part, const Place& in, bool to_gate) {
    PlannedPart planned;
    planned.in = planned.out = in;
    const bool identity = part.branch.empty() || (part.can_skip && part.shortcut.empty());
    if (part.gated) plan_.most_channels = std::max(plan_.most_channels, in.layout.pixel);
    if (!identity) planned.out = acquire(result_of(part.branch, in.layout), false);
    if (!part.shortcut.empty()) plan_program(part.shortcut, part.shortcut_terms, 0, in, {planned.out, false, {}}, planned.shortcut);
    for (const Way& way : part.ways) {
      Course course;
      if (way.bits != kSkipBits) {
        const int bits = way.bits <= kMaxIntegerBits ? way.bits : 0;
        plan_program(part.branch, way.terms, bits, in, {planned.out, part.can_skip, part.after}, course);
      } else if (part.can_skip && !part.hands_on) {
        for (Act act : part.after) pass(values_.act, planned.out, {}, planned.out, act, course);
      }
      course.sums = to_gate && add_up(course, planned.out);
      planned.options.push_back(std::move(course));
    }
    if (!identity) let_go(in);
    const Place out = planned.out;
    plan_.parts.push_back(std::move(planned));
    return out;
  }

  // Makes the last step leave channel sums, if it can.
  bool add_up(Course& course, const Place& out) {
    if (course.steps.empty()) return false;
    auto* last = dynamic_cast<ConvolutionStep*>(course.steps.back().get());
    if (!last || last->out.buffer != out.buffer) return false;
    plan_.most_channels = std::max(plan_.most_channels, out.layout.pixel);
    return last->sums = true;
  }

  static Layout result_of(const Op& op, const Layout& in) {
    switch (op.kind) {
      case OpKind::conv: {
        const Window window = op.reach();
        return Layout::dense(window.out_h(in.h), window.out_w(in.w), op.given, Element::f32);
      }
      case OpKind::pool: return Layout::dense(op.window.out_h(in.h), op.window.out_w(in.w), in.c, Element::f32);
      case OpKind::mean: return Layout::dense(1, 1, in.c, Element::f32);
      default: return Layout::dense(in.h, in.w, in.c, Element::f32);
    }
  }
  static Layout result_of(const Program& program, const Layout& in) {
    std::vector<Layout> values = {in};
    for (const Op& op : program) values.push_back(result_of(op, values[static_cast<std::size_t>(op.in)]));
    return values.back();
  }

  // -- programs -------------------------------------------------------------------------------------------

  // `bits` of its integers, or 0.
  void plan_program(const Program& program, const std::vector<Terms>& terms, int bits, const Place& in, const End& end, Course& course) {
    program_ = &program;
    terms_ = &terms;
    top_ = static_cast<float>((1 << bits) - 1);
    course_ = &course;
    now_.assign(program.size() + 1, {});
    for (const Op& op : program) {
      ++now_[static_cast<std::size_t>(op.in)].uses;
      if (op.takes_two()) ++now_[static_cast<std::size_t>(op.other)].uses;
    }
    now_[0].place = in;
    hold(in);
    for (std::size_t k = 0; k < program.size(); ++k) {
      const bool last = k + 1 == program.size();
      if (program[k].kind == OpKind::conv) plan_conv(k, last ? &end : nullptr);
      else plan_value(k, last ? &end : nullptr);
      used(program[k].in);
      if (program[k].takes_two()) used(program[k].other);
    }
    finish(end);
  }

  void used(int value) {
    Value& v = now_[static_cast<std::size_t>(value)];
    if (--v.uses > 0) return;
    let_go(v.place);
    let_go(v.factor);
  }

  // The last value, if it is not where it shall be, is added to what is there.
  void finish(const End& end) {
    const Value& last = now_.back();
    std::size_t done = last_done_;
    if (last.place.buffer != end.out.buffer) {
      const Act act = end.after.empty() ? Act::none : end.after.front();
      pass(values_.add, last.place, end.out, end.out, act, *course_);
      done = 1;
    }
    let_go(last.place);
    for (; done < end.after.size(); ++done) pass(values_.act, end.out, {}, end.out, end.after[done], *course_);
    last_done_ = 0;
  }

  // A pass over values whose pixels lie side by side.
  ValueStep& pass(ValueFunction function, const Place& in, const Place& other, const Place& out, Act act, Course& course) {
    auto step = std::make_unique<ValueStep>();
    step->function = function;
    step->in = in;
    step->other = other;
    step->out = out;
    step->args = {};
    step->args.pixels = in.layout.h * in.layout.w;
    step->args.channels = in.layout.pixel;
    step->args.used = in.layout.c;
    step->args.act = act;
    step->args.spread = other.buffer != kNothing && (other.layout.h != in.layout.h || other.layout.w != in.layout.w);
    ValueStep& placed = *step;
    course.steps.push_back(std::move(step));
    return placed;
  }

  // The one op that takes a value; null if several do.
  const Op* taker_of(std::size_t value) const {
    const Op* found = nullptr;
    for (const Op& op : *program_) {
      if (!op.uses(static_cast<int>(value))) continue;
      if (found || (op.takes_two() && op.in == op.other)) return nullptr;
      found = &op;
    }
    return found;
  }
  const Terms& terms_of(const Op& op) const { return (*terms_)[static_cast<std::size_t>(&op - program_->data())]; }

  // Whether a convolution's input must be brought into another form before it, whatever form it comes in.
  bool stages(const Op& op) const {
    if (op.kind != OpKind::conv) return false;
    return terms_of(op).is_integer() || border_of(op.window) > 0 || is_sparse(op.window);
  }

  // Where an op's result goes that is a plain value: to the end, if it is the last and nothing is there; in place
  // of an input that nobody needs any more; or to memory of its own.
  Place destination(std::size_t k, const End* end, bool may_overwrite) {
    const Op& op = (*program_)[k];
    Value& in = now_[static_cast<std::size_t>(op.in)];
    if (end && !end->adds) {
      hold(end->out);
      return end->out;
    }
    if (may_overwrite && in.uses == 1 && users(in.place) == 1) {
      hold(in.place);
      return in.place;
    }
    return acquire(result_of(op, in.place.layout), false);
  }

  void plan_value(std::size_t k, const End* end) {
    const Op& op = (*program_)[k];
    const Value in = now_[static_cast<std::size_t>(op.in)];
    Value& out = now_[k + 1];
    if (op.takes_two()) {
      const Value& other = now_[static_cast<std::size_t>(op.other)];
      const bool spread = !(other.place.layout.h == in.place.layout.h && other.place.layout.w == in.place.layout.w);
      const Op* taker = end ? nullptr : taker_of(k + 1);
      if (op.kind == OpKind::mul && spread && taker && stages(*taker)) {
        out.place = in.place;
        out.factor = other.place;
        hold(in.place);
        hold(other.place);
        return;
      }
      out.place = destination(k, end, op.in != op.other);
      pass(op.kind == OpKind::add ? values_.add : values_.mul, in.place, other.place, out.place, Act::none, *course_);
      return;
    }
    if (op.kind == OpKind::act) {
      const Op* taker = end ? nullptr : taker_of(k + 1);
      if (taker && stages(*taker)) {
        out.place = in.place;
        out.act = op.act;
        hold(in.place);
        return;
      }
      out.place = destination(k, end, true);
      pass(values_.act, in.place, {}, out.place, op.act, *course_);
      return;
    }
    if (op.kind == OpKind::pool) {
      out.place = destination(k, end, false);
      plan_pool(op, in.place, out.place);
      return;
    }
    if (op.kind == OpKind::mean) {
      out.place = destination(k, end, false);
      pass(values_.mean, in.place, {}, out.place, Act::none, *course_);
      return;
    }
    out.place = destination(k, end, true);
    ValueStep& step = pass(op.kind == OpKind::norm ? values_.norm : values_.affine, in.place, {}, out.place, Act::none, *course_);
    const Terms& terms = terms_of(op);
    step.gain = padded(terms.gain.data(), op.given, in.place.layout.pixel);
    step.bias = padded(terms.bias.data(), op.given, in.place.layout.pixel);
    step.args.gain = step.gain.as<float>();
    step.args.bias = step.bias.as<float>();
    step.args.eps = op.eps;
  }

  void plan_pool(const Op& op, const Place& in, const Place& out) {
    auto step = std::make_unique<PoolStep>();
    const Window& w = op.window;
    step->function = values_.pool;
    step->in = in;
    step->out = out;
    step->args = {nullptr, nullptr, in.layout.h, in.layout.w, out.layout.h, out.layout.w, in.layout.pixel, w.kernel_h, w.kernel_w,
                  w.stride_h, w.stride_w, w.pad_h, w.pad_w, op.largest, op.count_padding};
    course_->steps.push_back(std::move(step));
  }

  // -- convolutions ---------------------------------------------------------------------------------------

  // What a convolution reads: its input as it is, or brought into the right form.
  Place staged(const Op& op, const Terms& terms, const Value& in) {
    const int border = border_of(op.window);
    const Layout& from = in.place.layout;
    const bool ready = in.act == Act::none && in.factor.buffer == kNothing && from.border >= border;
    if (in.levels || (!terms.is_integer() && ready && !(is_sparse(op.window) && in.place.is_dense()))) {
      hold(in.place);
      return in.place;
    }
    // Of single taps with a stride, only what they reach.
    const Window& w = op.window;
    const int step_h = is_sparse(w) ? w.stride_h : 1, step_w = is_sparse(w) ? w.stride_w : 1;
    const int rows = (from.h + step_h - 1) / step_h, columns = (from.w + step_w - 1) / step_w;
    const Element element = terms.is_integer() ? Element::u8 : Element::f32;
    const Layout layout = border > 0 ? Layout::make(rows, columns, from.c, border, element) : Layout::dense(rows, columns, from.c, element);
    auto step = std::make_unique<StageStep>();
    step->function = terms.is_integer() ? values_.levels : values_.copy;
    step->in = in.place;
    step->factor = in.factor;
    step->out = acquire(layout, terms.zero == 0);
    StageArgs& a = step->args = {};
    a.act = in.act;
    a.in_row = step_h * from.row;
    a.in_pixel = static_cast<std::ptrdiff_t>(step_w) * from.pixel;
    a.h = rows;
    a.w = columns;
    a.channels = from.pixel;
    a.out_row = layout.row;
    a.out_pixel = layout.pixel;
    a.scale = terms.input == 0.f ? 1.f : terms.input;
    a.zero = static_cast<float>(terms.zero);
    a.top = top_;
    a.border = terms.zero == 0 ? 0 : border;
    const Place place = step->out;
    course_->steps.push_back(std::move(step));
    return place;
  }

  // Where a convolution's values go that other convolutions take, in the form that they read.
  Layout form_for_takers(std::size_t value, const Layout& result, Act act) const {
    if (!is_clamp(act)) return result;
    int border = 0;
    for (const Op& op : *program_) {
      if (!op.uses(static_cast<int>(value))) continue;
      if (op.kind != OpKind::conv || terms_of(op).is_integer()) return result;
      border = std::max(border, border_of(op.window));
    }
    return border > 0 ? Layout::make(result.h, result.w, result.c, border, Element::f32) : result;
  }

  void plan_conv(std::size_t k, const End* end) {
    const Terms& terms = (*terms_)[k];
    Op op = (*program_)[k];
    const Value& taken = now_[static_cast<std::size_t>(op.in)];
    const Place in = staged(op, terms, taken);
    if (in.layout.h != taken.place.layout.h || in.layout.w != taken.place.layout.w) op.window.stride_h = op.window.stride_w = 1;  // left out already
    const bool depthwise = is_depthwise(op) && (!terms.is_integer() || is_exact(op, terms, top_));
    Value& out = now_[k + 1];
    Act act = op.act;
    bool adds = false;
    const Layout result = result_of(op, in.layout);
    const Op* taker = end ? nullptr : taker_of(k + 1);
    const bool feeds = taker && taker->kind == OpKind::conv && terms_of(*taker).is_integer() && terms_of(*taker).input == 0.f;
    if (end) {
      // A sum that comes next is the epilogue's, and so is the clamp after it.
      adds = end->adds && act == Act::none && !depthwise && in.buffer != end->out.buffer;
      if (adds) {
        if (!end->after.empty() && is_clamp(end->after.front())) {
          act = end->after.front();
          last_done_ = 1;
        }
        hold(end->out);
        out.place = end->out;
      } else {
        out.place = destination(k, end, false);
      }
    } else if (feeds && terms_of(*taker).zero == 0) {
      const int border = border_of(taker->window);
      out.place = acquire(border > 0 ? Layout::make(result.h, result.w, result.c, border, Element::u8)
                                     : Layout::dense(result.h, result.w, result.c, Element::u8), true);
      out.levels = true;
    } else {
      if (feeds) act = Act::none;
      const Layout form = form_for_takers(k + 1, result, act);
      out.place = acquire(form, true);
    }
    const Act own = is_clamp(act) ? act : Act::none;
    if (depthwise) plan_depthwise(op, terms, in, out, own);
    else plan_dense(op, terms, in, out, own, adds);
    let_go(in);
    if (own == act || out.levels) return;
    if (taker && stages(*taker)) out.act = act;
    else pass(values_.act, out.place, {}, out.place, act, *course_);
  }

  void plan_depthwise(const Op& op, const Terms& terms, const Place& in, const Value& out, Act act) {
    auto step = std::make_unique<DepthwiseStep>();
    const Layout &from = in.layout, &to = out.place.layout;
    const int channels = to.pixel, taps = op.window.kernel_h * op.window.kernel_w;
    const bool integer = terms.is_integer();
    step->function = !integer ? values_.depthwise_f32 : out.levels ? values_.depthwise_u8 : values_.depthwise_u8_to_f32;
    step->in = in;
    step->out = out.place;
    step->first_tap = -(op.window.pad_h * from.row + static_cast<std::ptrdiff_t>(op.window.pad_w) * from.pixel);
    step->weights = Buffer(sizeof(float) * static_cast<std::size_t>(taps) * channels);
    for (int c = 0; c < op.given; ++c) {
      for (int tap = 0; tap < taps; ++tap) {
        const std::size_t at = static_cast<std::size_t>(c) * taps + tap;
        step->weights.as<float>()[static_cast<std::size_t>(tap) * channels + c] = integer ? static_cast<float>(terms.weight_i8[at]) : terms.weight_f32[at];
      }
    }
    if (integer) step->scale = padded(terms.scale.data(), op.given, channels);
    step->bias = padded(terms.bias.data(), op.given, channels);
    DepthwiseArgs& a = step->args = {};
    a.in_row = from.row;
    a.in_pixel = from.pixel;
    a.kernel_h = op.window.kernel_h;
    a.kernel_w = op.window.kernel_w;
    a.stride_h = op.window.stride_h;
    a.stride_w = op.window.stride_w;
    a.dilation_h = op.dilation_h;
    a.dilation_w = op.dilation_w;
    a.weights = step->weights.as<float>();
    a.scale = step->scale.as<float>();
    a.bias = step->bias.as<float>();
    a.out_h = to.h;
    a.out_w = to.w;
    a.channels = channels;
    a.out_row = to.row;
    a.out_pixel = to.pixel;
    a.top = top_;
    set_clamp(a, act);
    course_->kernels.push_back(std::string(set_.name) + (integer ? "_int8" : "_fp32") + "_depthwise");
    course_->steps.push_back(std::move(step));
  }

  void plan_dense(const Op& op, const Terms& terms, const Place& in, const Value& out, Act act, bool adds) {
    auto step = std::make_unique<ConvolutionStep>();
    const Layout &from = in.layout, &to = out.place.layout;
    const Grouping grouping = grouping_of(op);
    step->in = in;
    step->out = out.place;
    step->adds = adds;
    step->first_tap = -(op.window.pad_h * from.row + static_cast<std::ptrdiff_t>(op.window.pad_w) * from.pixel);
    // A dilation of one tap is none.
    const int apart_h = op.window.kernel_h > 1 ? op.dilation_h : 1, apart_w = op.window.kernel_w > 1 ? op.dilation_w : 1;
    const int common_h = std::gcd(apart_h, op.window.stride_h), common_w = std::gcd(apart_w, op.window.stride_w);
    step->phases_h = apart_h / common_h;
    step->phases_w = apart_w / common_w;
    step->phase_h = op.window.stride_h;
    step->phase_w = op.window.stride_w;
    const bool dilated = apart_h > 1 || apart_w > 1;
    for (int piece = 0; piece < grouping.pieces; ++piece) {
      Conv conv = piece_of(op, terms, grouping, piece);
      conv.window.stride_h /= common_h;
      conv.window.stride_w /= common_w;
      const bool winograd = !dilated && (terms.is_integer() || kTileArea * sizeof(float) * conv.in * conv.out <= kMostWinograd);
      plan_.convolutions.push_back(std::make_unique<Convolution>(conv, set_, winograd, false, grouping.pieces == 1 && apart_w == 1));
      ConvolutionStep::Piece made;
      made.conv = plan_.convolutions.back().get();
      made.in = static_cast<std::ptrdiff_t>(piece) * grouping.together * (op.taken / op.groups);
      made.out = static_cast<std::ptrdiff_t>(piece) * grouping.together * (op.given / op.groups);
      ConvArgs& a = made.args = made.conv->arguments();
      a.in_row = apart_h * from.row;
      a.in_pixel = apart_w * from.pixel;
      a.out_h = to.h;
      a.out_w = to.w;
      a.out_type = to.element;
      a.out_row = step->phases_h * to.row;
      a.out_pixel = step->phases_w * to.pixel;
      if (adds) {
        a.residual_type = Residual::f32;
        a.residual_row = a.out_row;
        a.residual_pixel = a.out_pixel;
      }
      a.top = top_;
      set_clamp(a, act);
      const Window& w = op.window;
      const bool by_pixels = w.kernel_h == 1 && w.kernel_w == 1 && w.stride_h == 1 && w.stride_w == 1 && w.pad_h == 0 && w.pad_w == 0;
      if (by_pixels && in.is_dense() && out.place.is_dense()) {  // one long row
        a.out_w *= a.out_h;
        a.out_h = 1;
        a.in_row = static_cast<std::ptrdiff_t>(a.out_w) * a.in_pixel;
      }
      ConvArgs largest = a;  // of the phases
      largest.out_h = (a.out_h + step->phases_h - 1) / step->phases_h;
      largest.out_w = (a.out_w + step->phases_w - 1) / step->phases_w;
      plan_.scratch_bytes = std::max(plan_.scratch_bytes, made.conv->scratch_bytes(largest));
      step->pieces.push_back(made);
    }
    std::string name = step->pieces.front().conv->kernel_name();
    if (op.groups > 1) name += "_groups";
    if (dilated) name += "_dilated";
    course_->kernels.push_back(name);
    course_->steps.push_back(std::move(step));
  }

  GraphPlan& plan_;
  const KernelSet& set_;
  const ValueKernels& values_;
  std::vector<Memory> memory_;

  // Of the program that is planned.
  const Program* program_ = nullptr;
  const std::vector<Terms>* terms_ = nullptr;
  float top_ = 0.f;
  Course* course_ = nullptr;
  std::vector<Value> now_;
  std::size_t last_done_ = 0;  // activations of the end that the last step has in it
};

}  // namespace

GraphPlan::GraphPlan(const GraphNetwork& network, const KernelSet& kernels) { Planner(*this, kernels).run(network); }

}  // namespace fracskip
