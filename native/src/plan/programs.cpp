// Programs: one op after another, and what becomes of the last value.
#include <algorithm>
#include <iterator>
#include <utility>

#include "plan/planner.hpp"

namespace fracskip {

Layout result_of(const Op& op, const Layout& in) {
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

void Planner::plan_program(const Program& program, const std::vector<Terms>& terms, int bits, const Place& in, const End& end, Course& course) {
  program_ = &program;
  terms_ = &terms;
  end_ = &end;
  top_ = bits <= kMaxIntegerBits ? static_cast<float>((1 << bits) - 1) : 0.f;
  half_ = bits > kMaxIntegerBits && bits <= kMaxHalfBits && set_.tiles_bf16;
  course_ = &course;
  now_.assign(program.size() + 1, {});
  absorbed_.assign(program.size(), false);
  takers_ = takers_of(program);
  readings_.assign(program.size() + 1, std::nullopt);
  for (const Op& op : program) {
    ++now_[static_cast<std::size_t>(op.in)].uses;
    if (op.takes_two()) ++now_[static_cast<std::size_t>(op.other)].uses;
  }
  now_[0].place = in;
  now_[0].stream = in.is_levels();
  memory_.hold(in);
  for (std::size_t k = 0; k < program.size(); ++k) {
    if (!absorbed_[k]) {
      if (program[k].kind == OpKind::conv) plan_conv(k);
      else plan_value(k);
    }
    used(program[k].in);
    if (program[k].takes_two()) used(program[k].other);
  }
  finish();
}

void Planner::used(int value) {
  Value& v = now_[static_cast<std::size_t>(value)];
  if (--v.uses > 0) return;
  memory_.let_go(v.place);
  memory_.let_go(v.plain);
  memory_.let_go(v.factor);
}

// The last value, if it is not where it shall be, is added to what is there, or rounded to levels.
void Planner::finish() {
  const int at = static_cast<int>(program_->size());
  const Value& last = now_.back();
  const Place& out = end_->out;
  std::size_t done = last_done_;
  last_done_ = 0;
  const bool there = last.place.buffer == out.buffer;
  if (!there && out.is_levels()) {
    round_off(plain(at), last.act);
  } else if (!there) {
    const Act act = end_->after.empty() ? Act::none : end_->after.front();
    const bool adds = end_->residual.is_some();
    pass(adds ? values_.add : values_.act, plain(at), adds ? end_->residual : Place{}, out, act);
    done = 1;
  }
  memory_.let_go(last.place);
  memory_.let_go(last.plain);
  if (out.is_levels()) return;  // a clamp that comes next is theirs
  for (; done < end_->after.size(); ++done) pass(values_.act, out, {}, out, end_->after[done]);
}

void Planner::round_off(const Place& in, Act act) {
  auto step = std::make_unique<RoundStep>();
  step->function = values_.round;
  step->in = in;
  step->residual = end_->residual;
  step->out = end_->out;
  step->args = {};
  step->args.act = act;
  step->args.residual_type = !end_->residual.is_some() ? Residual::none : end_->residual.is_levels() ? Residual::u8 : Residual::f32;
  step->args.count = in.layout.row;
  add(std::move(step), "quantize", {in, end_->residual, end_->out});
}

const char* Planner::name_of(ValueFunction function) const {
  const struct {
    ValueFunction function;
    const char* name;
  } names[] = {{values_.act, "act"}, {values_.add, "add"}, {values_.mul, "mul"}, {values_.affine, "affine"}, {values_.norm, "norm"}, {values_.mean, "mean"}};
  return std::find_if(std::begin(names), std::end(names), [&](const auto& each) { return each.function == function; })->name;
}

// A pass over values whose pixels lie side by side.
ValueStep& Planner::pass(ValueFunction function, const Place& in, const Place& other, const Place& out, Act act) {
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
  step->args.spread = other.is_some() && (other.layout.h != in.layout.h || other.layout.w != in.layout.w);
  return add(std::move(step), std::string("fp32_") + name_of(function), {in, other, out});
}

// The one op that takes a value; null if several do, or none.
const Op* Planner::taker_of(std::size_t value) const {
  const std::vector<std::size_t>& takers = takers_[value];
  if (takers.size() != 1) return nullptr;
  const Op& op = (*program_)[takers.front()];
  return op.takes_two() && op.in == op.other ? nullptr : &op;
}

// Whether a convolution's input must be brought into another form before it, whatever form it comes in.
bool Planner::stages(const Op& op) const {
  if (op.kind != OpKind::conv) return false;
  return terms_of(op).is_integer() || runs_in_half(op) || border_of(op.window) > 0 || is_sparse(op.window);
}

// A value in float32.
Place Planner::plain(int value) {
  Value& v = now_[static_cast<std::size_t>(value)];
  if (!v.stream) return v.place;
  if (!v.plain.is_some()) {
    const Layout& from = v.place.layout;
    v.plain = memory_.acquire(Layout::dense(from.h, from.w, from.c, Element::f32), false);
    stage(values_.values, "dequantize", v, v.plain);
  }
  return v.plain;
}

// Where an op's result goes that is a plain value: to the end, if it is the last and nothing else is to be done to it; in
// place of an input that nobody needs any more; or to memory of its own.
Place Planner::destination(std::size_t k, bool may_overwrite) {
  const Op& op = (*program_)[k];
  if (ends(k) && !end_->residual.is_some() && !end_->out.is_levels()) {
    memory_.hold(end_->out);
    return end_->out;
  }
  const Place in = plain(op.in);
  if (may_overwrite && now_[static_cast<std::size_t>(op.in)].uses == 1 && memory_.users(in) == 1) {
    memory_.hold(in);
    return in;
  }
  return memory_.acquire(result_of(op, in.layout), false);
}

void Planner::plan_value(std::size_t k) {
  const Op& op = (*program_)[k];
  if (op.takes_two()) return plan_pair(k);
  if (op.kind == OpKind::pool) return plan_pool(k);
  if (op.kind == OpKind::mean) return plan_mean(k);
  Value& out = now_[k + 1];
  if (op.kind == OpKind::act) {
    const Value& in = now_[static_cast<std::size_t>(op.in)];
    const Op* taker = taker_of(k + 1);
    const bool rounds = ends(k) && end_->out.is_levels();
    if ((taker && stages(*taker)) || rounds) {
      out.place = rounds ? plain(op.in) : in.place;
      out.stream = in.stream && !rounds;
      out.act = op.act;
      memory_.hold(out.place);
      return;
    }
    const Place from = plain(op.in);
    out.place = destination(k, true);
    pass(values_.act, from, {}, out.place, op.act);
    return;
  }
  const Place from = plain(op.in);
  out.place = destination(k, true);
  ValueStep& step = pass(op.kind == OpKind::norm ? values_.norm : values_.affine, from, {}, out.place, Act::none);
  const Terms& terms = terms_of(op);
  step.gain = padded(terms.gain.data(), op.given, from.layout.pixel);
  step.bias = padded(terms.bias.data(), op.given, from.layout.pixel);
  step.args.gain = step.gain.as<float>();
  step.args.bias = step.bias.as<float>();
  step.args.eps = op.eps;
}

void Planner::plan_pair(std::size_t k) {
  const Op& op = (*program_)[k];
  const Value& in = now_[static_cast<std::size_t>(op.in)];
  Value& out = now_[k + 1];
  const Place other = plain(op.other);
  const bool spread = !(other.layout.h == in.place.layout.h && other.layout.w == in.place.layout.w);
  const Op* taker = taker_of(k + 1);
  if (op.kind == OpKind::mul && spread && taker && stages(*taker)) {
    out.place = in.place;
    out.stream = in.stream;
    out.factor = other;
    memory_.hold(in.place);
    memory_.hold(other);
    return;
  }
  const Place from = plain(op.in);
  out.place = destination(k, op.in != op.other);
  pass(op.kind == OpKind::add ? values_.add : values_.mul, from, other, out.place, Act::none);
}

// The largest levels are the levels of the largest.
void Planner::plan_pool(std::size_t k) {
  const Op& op = (*program_)[k];
  const Value& in = now_[static_cast<std::size_t>(op.in)];
  Value& out = now_[k + 1];
  auto step = std::make_unique<PoolStep>();
  step->function = in.levels ? values_.pool_levels : values_.pool;
  if (!in.levels) {
    step->in = plain(op.in);
    out.place = destination(k, false);
  } else {
    step->in = in.place;
    out.levels = true;
    if (ends(k)) {
      out.place = end_->out;
      memory_.hold(out.place);
    } else {
      out.place = memory_.acquire(levels_of(result_of(op, in.place.layout), reading_of(k + 1).border), true);
    }
  }
  step->out = out.place;
  const Layout &from = step->in.layout, &to = step->out.layout;
  const Window& w = op.window;
  PoolArgs& a = step->args = {};
  a.out_row = to.row;
  a.in_h = from.h;
  a.in_w = from.w;
  a.out_h = to.h;
  a.out_w = to.w;
  a.channels = from.pixel;
  a.kernel_h = w.kernel_h;
  a.kernel_w = w.kernel_w;
  a.stride_h = w.stride_h;
  a.stride_w = w.stride_w;
  a.pad_top = w.pad_top;
  a.pad_left = w.pad_left;
  a.largest = op.largest;
  a.count_padding = op.count_padding;
  const Place taken = step->in;
  add(std::move(step), in.levels ? "int8_pool" : "fp32_pool", {taken, out.place});
}

// All but pointers, for the levels that the part takes.
LevelMeanArgs Planner::mean_arguments(const Place& in) const {
  const Layout& l = in.layout;
  LevelMeanArgs a{};
  a.in_row = l.row;
  a.h = l.h;
  a.w = l.w;
  a.channels = l.pixel;
  a.used = l.c;
  a.step = step_;
  a.zero = zero_;
  return a;
}

void Planner::plan_mean(std::size_t k) {
  const Op& op = (*program_)[k];
  const Value& in = now_[static_cast<std::size_t>(op.in)];
  Value& out = now_[k + 1];
  if (!in.stream) {
    out.place = destination(k, false);
    pass(values_.mean, in.place, {}, out.place, Act::none).by_pixel = false;
    return;
  }
  auto step = std::make_unique<LevelMeanStep>();
  step->function = values_.level_mean;
  step->in = in.place;
  const bool here = ends(k) && !end_->residual.is_some() && !end_->out.is_levels();
  step->out = here ? end_->out : memory_.acquire(result_of(op, in.place.layout), false);
  if (here) memory_.hold(step->out);
  out.place = step->out;
  step->args = mean_arguments(in.place);
  add(std::move(step), "int8_mean", {in.place, out.place});
}

}  // namespace fracskip
