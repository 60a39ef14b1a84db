#include "plan/plan.hpp"

#include <algorithm>

namespace fracskip {
namespace {

int border(const Window& window) { return std::max(window.pad_h, window.pad_w); }

Conv times(Conv conv, float factor) {
  for (float& weight : conv.weight_f32) weight *= factor;
  return conv;
}

}  // namespace

Plan::Plan(const Network& network, const KernelSet& set) : kernels(set) {
  integer_stream = network.integer_stream;
  plan_stem(network);
  int stage = 0;
  for (const Block& block : network.blocks) {
    plan_block(network, block, stage);
    if (block.shortcut) ++stage;
  }
  const Layout& last = layouts[head_in];
  const float area = static_cast<float>(last.h) * static_cast<float>(last.w);
  head_factor = (integer_stream ? network.stream_steps[stage] : 1.f) / area;
  head = network.head;
  finish();
}

// Finds or adds the activation that plays a role at a shape. Blocks of one stage share theirs.
int Plan::activation(const std::string& role, int h, int w, int c, Element element) {
  const auto next = static_cast<int>(layouts.size());
  const auto [place, is_new] = known_.emplace(std::tuple(role, h, w, c, element), next);
  if (is_new) {
    layouts.push_back(Layout::make(h, w, c, 0, element));
    roles_.push_back(role);
  }
  return place->second;
}

ConvStep Plan::step(const Conv& conv, int in, int out, bool half) {
  convolutions.push_back(std::make_unique<Convolution>(conv, kernels, Forms{true, half, true}));
  ConvStep s;
  s.conv = convolutions.back().get();
  s.args = s.conv->arguments();
  s.args.out_type = layouts[out].element;
  s.args.relu = true;
  s.in = in;
  s.out = out;
  layouts[in].border = std::max(layouts[in].border, border(conv.window));
  return s;
}

void Plan::plan_stem(const Network& network) {
  image = activation("image", network.height, network.width, network.channels, Element::f32);
  // The last convolution speaks the stream's language; pooling keeps it.
  std::size_t last_conv = 0;
  for (std::size_t i = 0; i < network.stem.size(); ++i) {
    if (network.stem[i].is_conv) last_conv = i;
  }
  int at = image;
  for (std::size_t i = 0; i < network.stem.size(); ++i) {
    const Conv& conv = network.stem[i].conv;
    const bool last = i + 1 == network.stem.size();
    const int h = conv.window.out_h(layouts[at].h), w = conv.window.out_w(layouts[at].w);
    const int c = network.stem[i].is_conv ? conv.out : layouts[at].c;
    const Element element = integer_stream && i >= last_conv ? Element::u8 : Element::f32;
    const int out = activation(last ? "stream0" : "stem" + std::to_string(i), h, w, c, element);
    StemStep s;
    s.is_conv = network.stem[i].is_conv;
    if (s.is_conv) {
      s.conv = step(conv, at, out);
      s.conv.sums = last;
    } else {
      s.pool = {conv.window, at, out};
      layouts[at].border = std::max(layouts[at].border, border(conv.window));
    }
    stem.push_back(s);
    at = out;
  }
  head_in = at;
}

void Plan::plan_block(const Network& network, const Block& block, int stage) {
  PlannedBlock planned;
  planned.in = head_in;
  const Layout in = layouts[planned.in];
  const float area = static_cast<float>(in.h) * static_cast<float>(in.w);
  planned.pooled_factor = (integer_stream ? network.stream_steps[stage] : 1.f) / area;
  planned.out = planned.in;
  if (block.shortcut) {
    const Window& w = block.shortcut->window;
    const std::string role = "stream" + std::to_string(stage + 1);
    planned.out = activation(role, w.out_h(in.h), w.out_w(in.w), block.shortcut->out, integer_stream ? Element::u8 : Element::f32);
  }
  head_in = planned.out;
  blocks.push_back(std::move(planned));
  for (const Execution& execution : block.options) {
    blocks.back().options.push_back(plan_option(network, block, execution, stage));
  }
}

PlannedOption Plan::plan_option(const Network& network, const Block& block, const Execution& execution,
                                int stage) {
  PlannedOption planned;
  const int in = blocks.back().in, out = blocks.back().out;
  const bool skip = execution.branch.empty();
  int residual = in;
  if (block.shortcut) {
    const Layout target = layouts[out];
    residual = skip ? out : activation("shortcut", target.h, target.w, target.c, Element::f32);
    ConvStep s = step(*block.shortcut, in, residual);
    s.args.relu = skip;
    s.sums = skip;
    planned.convs.push_back(s);
  }
  if (skip) return planned;

  const bool integer = execution.branch.front().is_integer();
  const bool half = !integer && execution.bits <= kMaxHalfBits &&
                    std::all_of(execution.branch.begin(), execution.branch.end(),
                                [this](const Conv& conv) { return runs_in_bf16(conv.window, kernels); });
  const Element element = integer ? Element::u8 : half ? Element::bf16 : Element::f32;
  const bool direct = integer_stream ? integer && execution.input_scale == 0.f : element == Element::f32;
  // A branch of one convolution would overwrite what it still has to read: give it a copy.
  const bool in_place = execution.branch.size() == 1 && in == out;
  int at = in;
  if (!direct || in_place) {
    const Layout stream = layouts[in];
    MapStep& map = planned.map;
    map.in = in;
    map.out = at = activation("values", stream.h, stream.w, stream.c, element);
    if (integer_stream && !direct) map.step = network.stream_steps[stage];
    if (integer) {
      map.function = integer_stream ? kernels.u8_to_u8 : kernels.f32_to_u8;
      map.scale = direct ? 1.f : execution.input_scale;
      map.top = static_cast<float>((1 << execution.bits) - 1);
    } else if (half) {
      map.function = integer_stream ? kernels.u8_to_bf16 : kernels.f32_to_bf16;
    } else {
      map.function = integer_stream ? kernels.u8_to_f32 : kernels.f32_to_f32;
    }
  }
  for (std::size_t j = 0; j < execution.branch.size(); ++j) {
    // Levels are exact in bfloat16, what they stand for is not: the first weights take their step.
    const bool scaled = half && j == 0 && integer_stream;
    const Conv own = scaled ? times(execution.branch[j], network.stream_steps[stage]) : Conv();
    const Conv& conv = scaled ? own : execution.branch[j];
    const bool last = j + 1 == execution.branch.size();
    const int h = conv.window.out_h(layouts[at].h), w = conv.window.out_w(layouts[at].w);
    const int to = last ? out : activation("branch" + std::to_string(j), h, w, conv.out, element);
    ConvStep s = step(conv, at, to, half);
    if (last) {
      s.residual = residual;
      s.args.residual_type = layouts[residual].element == Element::f32 ? Residual::f32 : Residual::u8;
      s.sums = true;
    } else {
      s.args.top = static_cast<float>((1 << std::min(execution.bits, kMaxIntegerBits)) - 1);
    }
    planned.convs.push_back(s);
    at = to;
  }
  return planned;
}

// Borders are known now: layouts become final, and the steps take their strides.
void Plan::finish() {
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    const Layout& l = layouts[i];
    const bool pixels = roles_[i] == "image";  // its channels lie side by side
    layouts[i] = Layout::make(l.h, l.w, l.c, l.border, l.element, !pixels);
    most_channels = std::max(most_channels, round_up(l.c, kBlock));
  }
  weights = gather_weights(convolutions);
  const auto place = [this](ConvStep& s) {
    s.args.weights = s.conv->weights();
    const Layout &in = layouts[s.in], &out = layouts[s.out];
    s.args.in_row = in.row;
    s.args.in_pixel = in.pixel;
    s.args.out_h = out.h;
    s.args.out_w = out.w;
    s.args.out_row = out.row;
    s.args.out_pixel = out.pixel;
    if (s.residual != kNone) {
      s.args.residual_row = layouts[s.residual].row;
      s.args.residual_pixel = layouts[s.residual].pixel;
    }
    scratch_bytes = std::max(scratch_bytes, s.conv->scratch_bytes(s.args));
  };
  for (StemStep& s : stem) {
    if (s.is_conv) place(s.conv);
  }
  for (PlannedBlock& block : blocks) {
    for (PlannedOption& option : block.options) {
      for (ConvStep& s : option.convs) place(s);
    }
  }
}

}  // namespace fracskip
