// Convolutions of programs: what they read, where they write, and what their epilogues do on the way.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "plan/pieces.hpp"
#include "plan/planner.hpp"

namespace fracskip {
namespace {

// Bytes of a float convolution's transformed weights, beyond which fetching them takes longer than Winograd's algorithm saves.
constexpr std::size_t kMostWinograd = std::size_t{4} << 20;

constexpr float kMostOfRelu6 = 6.f;
constexpr float kMostLevel = 255.f;

template <class Args>
void set_clamp(Args& args, Act act) {
  args.relu = act != Act::none;
  args.most = act == Act::relu6 ? kMostOfRelu6 : std::numeric_limits<float>::infinity();
}

// Finds numbers with which `relevel_short` gives what `relevel` does, for each of the 256 levels.
bool relevels_short(StageArgs& a, const ValueKernels& values) {
  if (!values.relevel_short || a.act != Act::none) return false;
  constexpr int kLevels = 256, kBits = 16, kMost = (1 << kBits) - 1;
  std::uint8_t in[kLevels], out[kLevels];
  for (int q = 0; q < kLevels; ++q) in[q] = static_cast<std::uint8_t>(q);
  StageArgs all = a;
  all.in = in;
  all.out = out;
  all.h = 1;
  all.w = kLevels / kBlock;
  all.channels = all.used = kBlock;
  all.in_pixel = all.out_pixel = kBlock;
  all.in_row = all.out_row = kLevels;
  all.border = 0;
  values.relevel(all);
  const double scale = static_cast<double>(a.step) * a.scale, begin = a.zero - a.in_zero * scale + 0.5;
  for (int shift = kBits - 1; shift > 0; --shift) {
    const double unit = 1 << shift, factor = std::round(scale * unit * kLevels), first = std::round(begin * unit);
    if (first < 1 || factor + first + 2 > kMost) continue;
    for (const int more : {0, 1, -1, 2}) {
      a.factor16 = static_cast<std::uint16_t>(factor);
      a.begin16 = static_cast<std::uint16_t>(static_cast<int>(first) + more);
      a.shift16 = shift;
      const auto level = [&](int q) { return std::min(((q * a.factor16 >> 8) + a.begin16) >> shift, static_cast<int>(a.top)); };
      int q = 0;
      while (q < kLevels && level(q) == out[q]) ++q;
      if (q == kLevels) return true;
    }
  }
  return false;
}

std::int64_t macs_of(const Op& op, const Layout& out) {
  const std::int64_t taps = op.window.kernel_h * op.window.kernel_w;
  return static_cast<std::int64_t>(out.h) * out.w * op.given * (op.taken / op.groups) * taps;
}

}  // namespace

// A pass over a value's pixels, all of them.
StageStep& Planner::stage(StageFunction function, const char* kernel, const Value& in, const Place& out) {
  auto step = std::make_unique<StageStep>();
  step->function = function;
  step->in = in.place;
  step->factor = in.factor;
  step->out = out;
  const Layout &from = in.place.layout, &to = out.layout;
  StageArgs& a = step->args = {};
  a.act = in.act;
  a.in_row = from.row;
  a.in_pixel = from.pixel;
  a.h = from.h;
  a.w = from.w;
  a.channels = from.pixel;
  a.used = from.c;
  a.out_row = to.row;
  a.out_pixel = to.pixel;
  a.step = step_;
  a.in_zero = static_cast<float>(zero_);
  return add(std::move(step), kernel, {in.place, in.factor, out});
}

// Whether a convolution is executed in bfloat16, provided that its input is ready as it is: levels (whose zero is 0) or values of
// whole blocks of channels, which an image's are not.
bool Planner::runs_in_half(const Op& op) const {
  if (!half_ || terms_of(op).is_integer() || is_depthwise(op) || !runs_in_bf16(op.window, set_)) return false;
  const Value& in = now_[static_cast<std::size_t>(op.in)];
  const bool ready = op.in > 0 || (in.stream ? zero_ == 0 : in.place.layout.pixel % kBlock == 0);
  return ready && grouping_of(op).pieces == 1 && !Spread(op).is_some();
}

// What a convolution reads: its input as it is, or brought into the right form.
Place Planner::staged(const Op& op, const Terms& terms, bool half, const Value& in) {
  const int border = border_of(op.window);
  const Layout& from = in.place.layout;
  const bool untouched = in.act == Act::none && !in.factor.is_some() && from.border >= border;
  // Of single taps with a stride, only what they reach.
  const Window& w = op.window;
  const int step_h = is_sparse(w) ? w.stride_h : 1, step_w = is_sparse(w) ? w.stride_w : 1;
  const int rows = (from.h + step_h - 1) / step_h, columns = (from.w + step_w - 1) / step_w;
  const Element element = terms.is_integer() ? Element::u8 : half ? Element::bf16 : Element::f32;
  // Levels are read where they lie, unless rows are so short that they leave most of a tile empty.
  const bool takes_levels = in.stream && terms.is_integer() && terms.input == 0.f;
  const bool takes_values = !in.stream && !terms.is_integer() && from.element == element;
  const bool in_place = takes_levels ? !is_sparse(w) || columns > kBlock / 2 : takes_values && !(is_sparse(w) && in.place.is_dense());
  if (in.levels || (untouched && in_place)) {
    memory_.hold(in.place);
    return in.place;
  }
  struct Form {
    StageFunction function;
    const char* kernel;
  };
  Form form = terms.is_integer() ? Form{values_.levels, "quantize"} : half ? Form{set_.f32_to_bf16, "to_bf16"} : Form{values_.copy, "fp32_copy"};
  if (in.stream) {
    form = takes_levels ? Form{values_.copy_levels, "int8_copy"} : terms.is_integer() ? Form{values_.relevel, "requantize"}
           : half ? Form{set_.u8_to_bf16, "to_bf16"} : Form{values_.values, "dequantize"};
  }
  Layout layout = form_of(from, border, element);
  if (is_sparse(w)) layout = Layout::dense(rows, columns, from.c, element);
  // Of a stride: else tiles want their pixels in whole lines.
  else if (in.place.buffer == plan_.image.buffer && terms.is_integer() && from.c <= kImagePixel && w.stride_h > 1 && w.stride_w > 1) {
    layout = Layout::make(from.h, from.w, from.c, border, element, kImagePixel);
    form.function = values_.levels_of_image;
  }
  const Place out = memory_.acquire(layout, terms.zero == 0);
  StageStep& placed = stage(form.function, form.kernel, in, out);
  StageArgs& a = placed.args;
  a.in_row *= step_h;
  a.in_pixel *= step_w;
  a.h = rows;
  a.w = columns;
  a.scale = terms.input == 0.f ? 1.f : terms.input;
  a.zero = static_cast<float>(terms.zero);
  a.top = top_;
  a.border = terms.zero == 0 ? 0 : border;
  if (form.function == values_.relevel && !in.factor.is_some() && relevels_short(a, values_)) placed.function = values_.relevel_short;
  return out;
}

// Where a convolution's values go that other convolutions take, in the form that they read. `half`: it may give bfloat16.
Layout Planner::form_for_takers(std::size_t value, const Layout& result, Act act, bool half) const {
  if (!is_clamp(act)) return result;
  int border = 0;
  for (std::size_t taker : takers_[value]) {
    const Op& op = (*program_)[taker];
    if (op.kind != OpKind::conv || terms_of(op).is_integer()) return result;
    half = half && runs_in_half(op);
    border = std::max(border, border_of(op.window));
  }
  return form_of(result, border, half ? Element::bf16 : Element::f32);
}

// Rounding to levels is monotone, so it may come before a pool of the largest. Where 0 is not level 0, it takes two
// roundings, and a pass of its own.
Planner::Reading Planner::reading_of(std::size_t value) {
  if (!readings_[value]) readings_[value] = find_reading(value);
  return *readings_[value];
}

Planner::Reading Planner::find_reading(std::size_t value) {
  if (value == program_->size()) {
    return end_->out.is_levels() && !end_->residual.is_some() ? Reading{1.f, kMostLevel, 0} : Reading{};
  }
  Reading all;
  for (std::size_t taker : takers_[value]) {
    const Op& op = (*program_)[taker];
    Reading one;
    if (op.kind == OpKind::conv) {
      const Terms& terms = terms_of(op);
      if (!terms.is_integer() || terms.zero != 0) return {};
      one = {terms.input, top_, border_of(op.window)};
    } else if (op.kind == OpKind::pool && op.largest && taker_of(value)) {
      one = reading_of(taker + 1);
      one.border = 0;
    }
    if (one.input == 0.f || (all.input != 0.f && (one.input != all.input || one.top != all.top))) return {};
    all = {one.input, one.top, std::max(all.border, one.border)};
  }
  return all;
}

Planner::Tail Planner::tail_of(std::size_t k, const Layout& result) {
  Tail tail{k, (*program_)[k].act, {}, false};
  const Op* sum = tail.act == Act::none ? taker_of(k + 1) : nullptr;
  if (!sum || sum->kind != OpKind::add) return tail;
  const int other = sum->in == static_cast<int>(k + 1) ? sum->other : sum->in;
  if (other > static_cast<int>(k)) return tail;
  const Value& value = now_[static_cast<std::size_t>(other)];
  const Layout& form = value.place.layout;
  const bool ready = value.place.is_some() && !value.levels && value.act == Act::none && !value.factor.is_some() && (value.stream || value.place.is_dense());
  if (!ready || form.h != result.h || form.w != result.w) return tail;
  const auto number = [&](const Op* op) { return static_cast<std::size_t>(op - program_->data()); };
  tail.residual = plain(other);
  tail.may_overwrite = value.uses == 1 && memory_.users(tail.residual) == 1;
  tail.last = number(sum);
  const Op* clamp = taker_of(tail.last + 1);
  if (!clamp || clamp->kind != OpKind::act || !is_clamp(clamp->act)) return tail;
  tail.last = number(clamp);
  tail.act = clamp->act;
  return tail;
}

// Whether a convolution can write the program's end: it does what is left to do, and reads nothing that is there.
bool Planner::goes_to_end(const Tail& tail, std::size_t k, const Place& in, bool depthwise) const {
  const bool floats = !(*terms_)[k].is_integer();
  if (end_->out.is_levels() && (!is_clamp(tail.act) || (depthwise && floats))) return false;
  if (!end_->residual.is_some()) return true;
  return tail.last == k && tail.act == Act::none && !depthwise && in.buffer != end_->out.buffer;
}

Planner::Target Planner::target_of(std::size_t k, const Tail& tail, const Place& in, const Layout& result, bool depthwise, bool half) {
  Target target;
  target.act = tail.act;
  target.residual = tail.residual;
  if (ends(tail.last)) {
    if (!goes_to_end(tail, k, in, depthwise)) {
      target.out = memory_.acquire(result, false);
      return target;
    }
    target.out = end_->out;
    memory_.hold(target.out);
    target.top = kMostLevel;
    if (end_->residual.is_some()) target.residual = end_->residual;
    if (!target.out.is_levels() && target.act == Act::none && !end_->after.empty() && is_clamp(end_->after.front())) {
      target.act = end_->after.front();
      last_done_ = 1;
    }
    return target;
  }
  const Reading reading = depthwise || !is_clamp(tail.act) ? Reading{} : reading_of(tail.last + 1);
  if (reading.input != 0.f) {
    target.out = memory_.acquire(levels_of(result, reading.border), true);
    target.input = reading.input;
    target.top = reading.top;
  } else if (tail.may_overwrite) {
    target.out = tail.residual;
    memory_.hold(target.out);
  } else {
    target.out = memory_.acquire(form_for_takers(tail.last + 1, result, tail.act, half && !tail.residual.is_some()), true);
  }
  return target;
}

void Planner::plan_conv(std::size_t k) {
  const Terms& terms = (*terms_)[k];
  Op op = (*program_)[k];
  const Value& taken = now_[static_cast<std::size_t>(op.in)];
  const bool half = runs_in_half((*program_)[k]) && taken.act == Act::none && !taken.factor.is_some();
  const Place in = staged(op, terms, half, taken);
  if (in.layout.h != taken.place.layout.h || in.layout.w != taken.place.layout.w) op.window.stride_h = op.window.stride_w = 1;  // left out already
  const bool depthwise = is_depthwise(op) && (!terms.is_integer() || is_exact(op, terms, top_));
  const Layout result = result_of(op, in.layout);
  const Op* taker = taker_of(k + 1);
  const bool feeds = taker && taker->kind == OpKind::conv && terms.is_integer() && terms_of(*taker).input == 0.f;
  Tail tail = feeds ? Tail{k, Act::none, {}, false} : depthwise ? Tail{k, op.act, {}, false} : tail_of(k, result);
  Target target;
  const bool fills = feeds && terms_of(*taker).zero == 0;
  if (fills) {  // the taker's levels, whose clamp does what the activation would
    target.out = memory_.acquire(levels_of(result, border_of(taker->window)), true);
    target.top = top_;
  } else {
    target = target_of(k, tail, in, result, depthwise, half);
  }
  if (tail.last > k) absorbed_[tail.last] = true;
  for (std::size_t next : takers_[k + 1]) {
    if (tail.residual.is_some() && next <= tail.last) absorbed_[next] = true;
  }
  Value& out = now_[tail.last + 1];
  out.place = target.out;
  const bool clamps = is_clamp(target.act), ended = ends(tail.last);
  const Act act = target.act;
  if (!clamps) target.act = Act::none;
  if (target.out.is_levels() && target.act == Act::relu6) target.top = std::min(target.top, kMostOfRelu6 * target.input);
  if (depthwise) plan_depthwise(op, terms, in, target);
  else plan_dense(op, terms, half, in, target);
  memory_.let_go(in);
  out.levels = target.out.is_levels();
  if (clamps) return;
  const bool rounds = ended && end_->out.is_levels();
  taker = taker_of(tail.last + 1);
  if (rounds || (taker && stages(*taker))) out.act = act;
  else pass(values_.act, out.place, {}, out.place, act);
}

void Planner::plan_depthwise(const Op& op, const Terms& terms, const Place& in, const Target& target) {
  auto step = std::make_unique<DepthwiseStep>();
  const Layout &from = in.layout, &to = target.out.layout;
  const bool integer = terms.is_integer();
  step->function = !integer ? values_.depthwise_f32 : target.out.is_levels() ? values_.depthwise_u8 : values_.depthwise_u8_to_f32;
  step->in = in;
  step->out = target.out;
  step->first_tap = -(op.window.pad_top * from.row + static_cast<std::ptrdiff_t>(op.window.pad_left) * from.pixel);
  std::shared_ptr<const DepthwiseStep::Weights>& weights = made_depthwise_[&terms];
  if (!weights) weights = depthwise_weights(op, terms, to.pixel);
  step->weights = weights;
  DepthwiseArgs& a = step->args = {};
  a.in_row = from.row;
  a.in_pixel = from.pixel;
  a.kernel_h = op.window.kernel_h;
  a.kernel_w = op.window.kernel_w;
  a.stride_h = op.window.stride_h;
  a.stride_w = op.window.stride_w;
  a.dilation_h = op.dilation_h;
  a.dilation_w = op.dilation_w;
  a.weights = weights->taps.as<float>();
  a.scale = weights->scale.as<float>();
  a.bias = weights->bias.as<float>();
  a.out_h = to.h;
  a.out_w = to.w;
  a.channels = to.pixel;
  a.out_row = to.row;
  a.out_pixel = to.pixel;
  a.top = target.top;
  set_clamp(a, target.act);
  const std::string kernel = integer ? "int8_depthwise" : "fp32_depthwise";
  course_->kernels.push_back(std::string(set_.name) + "_" + kernel);
  add(std::move(step), kernel, {in, target.out}, macs_of(op, to), weights->taps.size());
}

// An op's convolutions, made once for all who execute it.
const std::vector<const Convolution*>& Planner::pieces_of(const Op& op, const Terms& terms, bool half, const Grouping& grouping, int pixel) {
  std::vector<const Convolution*>& pieces = made_[{&terms, op.window.stride_h, op.window.stride_w}];
  const Spread spread(op);
  for (int piece = static_cast<int>(pieces.size()); piece < grouping.pieces; ++piece) {
    // Levels are exact in bfloat16, what they stand for is not: weights take their step.
    const float factor = half && now_[static_cast<std::size_t>(op.in)].stream ? step_ : 1.f;
    Conv conv = piece_of(op, terms, grouping, piece, top_, factor);
    conv.window.stride_h /= spread.common_h;
    conv.window.stride_w /= spread.common_w;
    Forms forms;
    forms.winograd = !spread.is_some() && (terms.is_integer() || kTileArea * sizeof(float) * conv.in * conv.out <= kMostWinograd);
    forms.half = half;
    forms.tiles = grouping.pieces == 1 && spread.apart_w == 1;
    forms.pixel = pixel;
    forms.zeros = terms.zero == 0;  // as `staged` takes memory
    plan_.convolutions.push_back(std::make_unique<Convolution>(conv, set_, forms));
    pieces.push_back(plan_.convolutions.back().get());
  }
  return pieces;
}

void Planner::plan_dense(const Op& op, const Terms& terms, bool half, const Place& in, const Target& target) {
  auto step = std::make_unique<ConvolutionStep>();
  const Layout &from = in.layout, &to = target.out.layout, &residual = target.residual.layout;
  const Grouping grouping = grouping_of(op);
  const Spread spread(op);
  step->out_buffer = target.out.buffer;
  step->channels = to.pixel;
  step->height = to.h;
  step->phases_h = spread.apart_h / spread.common_h;
  step->phases_w = spread.apart_w / spread.common_w;
  const std::ptrdiff_t first_tap = -(op.window.pad_top * from.row + static_cast<std::ptrdiff_t>(op.window.pad_left) * from.pixel);
  int piece = 0;
  std::size_t weight_bytes = 0;
  for (const Convolution* conv : pieces_of(op, terms, half, grouping, from.pixel)) {
    ConvolutionStep::Piece made;
    made.conv = conv;
    made.channel = piece * grouping.together * (op.given / op.groups);
    const std::ptrdiff_t taken = static_cast<std::ptrdiff_t>(piece) * grouping.together * (op.taken / op.groups);
    ++piece;
    made.in = Spot::of(in, first_tap + taken, op.window.stride_h, op.window.stride_w);
    made.out = Spot::of(target.out, made.channel);
    made.residual = Spot::of(target.residual, made.channel);
    ConvArgs& a = made.args = conv->arguments();
    a.in_row = spread.apart_h * from.row;
    a.in_pixel = spread.apart_w * from.pixel;
    a.out_h = to.h;
    a.out_w = to.w;
    a.out_type = to.element;
    a.out_row = step->phases_h * to.row;
    a.out_pixel = step->phases_w * to.pixel;
    if (target.residual.is_some()) {
      a.residual_type = target.residual.is_levels() ? Residual::u8 : Residual::f32;
      a.residual_row = step->phases_h * residual.row;
      a.residual_pixel = step->phases_w * residual.pixel;
    }
    a.input = target.input;
    a.top = target.top;
    set_clamp(a, target.act);
    a.bounded = conv->bounds(a);
    const Window& w = op.window;
    const bool by_pixels = w.kernel_h == 1 && w.kernel_w == 1 && w.stride_h == 1 && w.stride_w == 1 && !w.pads();
    if (by_pixels && in.is_dense() && target.out.is_dense()) {  // one long row
      a.out_w *= a.out_h;
      a.out_h = 1;
      a.in_row = static_cast<std::ptrdiff_t>(a.out_w) * a.in_pixel;
    }
    ConvArgs largest = a;  // of the phases
    largest.out_h = (a.out_h + step->phases_h - 1) / step->phases_h;
    largest.out_w = (a.out_w + step->phases_w - 1) / step->phases_w;
    plan_.scratch_bytes = std::max(plan_.scratch_bytes, conv->scratch_bytes(largest));
    weight_bytes += conv->weight_bytes();
    step->pieces.push_back(made);
  }
  std::string name = step->pieces.front().conv->kernel_name();
  if (op.groups > 1) name += "_groups";
  if (spread.is_some()) name += "_dilated";
  course_->kernels.push_back(name);
  dense_.push_back(step.get());
  add(std::move(step), "", {in, target.residual, target.out}, macs_of(op, to), weight_bytes).info.kernel = name;
}

}  // namespace fracskip
