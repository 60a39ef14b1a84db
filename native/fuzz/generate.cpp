#include "generate.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace fracskip {
namespace {

const char* const kActs[] = {"none", "relu", "relu6", "hardsigmoid", "hardswish", "sigmoid", "silu", "gelu"};

struct Extent {
  int c, h, w;
  bool operator==(const Extent& o) const { return c == o.c && h == o.h && w == o.w; }
};

// The levels between two parts of an 8-bit stream.
struct Grid {
  float step = 1.f;
  int zero = 0;
};

// A convolution that a program holds, or the channels of a gain.
struct Made {
  bool conv = false;
  int taken = 0, given = 0, kernel_h = 1, kernel_w = 1, groups = 1;
  bool may_be_fed = false;  // by another convolution's levels
  bool fed_by_none = false;  // which has no activation
  bool takes_first = false;  // what the part takes
};

struct Draft {
  std::string json;
  std::vector<Made> ops;
  Extent out;
};

struct Padding {
  int top = 0, left = 0, bottom = 0, right = 0;
};

std::string pair_of(int a, int b) { return "[" + std::to_string(a) + ", " + std::to_string(b) + "]"; }

std::string list_of(const std::vector<std::string>& labels) {
  std::string list;
  for (const std::string& label : labels) list += (list.empty() ? "\"" : ", \"") + label + "\"";
  return "[" + list + "]";
}

class Generator {
 public:
  explicit Generator(Random& random) : random_(random) {}

  Bytes run() {
    const int channels = below(2) ? 3 : 1 + below(18), classes = 1 + below(5);
    Extent at = {channels, 1 + below(9), 1 + below(9)};
    const Extent image = at;
    choose_options();
    stream_ = below(2);
    version_ = below(8) ? 4 : 3;
    std::string parts;
    const int count = 1 + below(4);
    for (int i = 0; i < count; ++i) parts += part(i, at) + ", ";
    parts += head(count, at, classes);
    gate();
    std::string per_channel, names;
    for (int c = 0; c < channels; ++c) per_channel += (c ? ", 0.5" : "0.5");
    for (int c = 0; c < classes; ++c) names += (c ? ", \"c\"" : "\"c\"");
    return pack(R"({"schema": "fracskip.bundle", "version": )" + std::to_string(version_) + R"(, "name": "random", "source": "", "data_name": "", "class_names": [)" + names +
                R"(], "image": {"size": )" + pair_of(image.h, image.w) + R"(, "channels": )" + std::to_string(channels) + R"(, "mean": [)" +
                per_channel + R"(], "std": [)" + per_channel + R"(]}, "options": )" + list_of(options_) + R"(, "stream": ")" +
                (stream_ ? "int8" : "float") + R"(", "cost": {"stem_macs": 1, "head_macs": 1, "blocks": [)" + blocks_ + R"(], "stem_bits": 32, "head_bits": 8}, "network": {"classes": )" + std::to_string(classes) +
                R"(, "parts": [)" + parts + R"(]}, "gate": )" + gate_json_ + R"(, "operating_points": {"target": null, "multiplier": )" + (gate_json_ == "null" ? "0" : std::to_string(below(41) - 20)) +
                R"(, "multiplier_curve": [], "cascade": []}})");
  }

 private:
  int below(int count) { return static_cast<int>(random_() % static_cast<unsigned>(count)); }

  void choose_options() {
    for (const char* label : {"skip", "2", "4", "8", "16", "full"}) {
      if (below(2)) options_.push_back(label);
    }
    if (options_.empty() || (options_.size() == 1 && options_[0] == "skip")) options_ = {"skip", "8"};
  }

  // Of what no gate decides for.
  std::string width() {
    const char* const kWidths[] = {"2", "5", "8", "8", "12", "full"};
    return kWidths[below(6)];
  }

  std::string padding(const Padding& pad) const {
    if (version_ == 3) return pair_of(pad.top, pad.left);
    return "[" + std::to_string(pad.top) + ", " + std::to_string(pad.left) + ", " + std::to_string(pad.bottom) + ", " + std::to_string(pad.right) + "]";
  }

  std::string act() { return kActs[below(2) ? below(3) : below(8)]; }

  void add(Draft& p, const std::string& json, Made made) {
    p.json += (p.ops.empty() ? "" : ", ") + json;
    p.ops.push_back(made);
  }

  // `keeps`: with the size that it has.
  void conv(Draft& p, int value, int given, bool keeps, const std::string& act, bool fed, bool fed_by_none) {
    Made made;
    made.conv = true;
    made.taken = p.out.c;
    made.given = given;
    made.may_be_fed = fed;
    made.fed_by_none = fed_by_none;
    made.takes_first = value == 0;
    const int kind = below(4);
    if (kind == 0) made.groups = made.given = made.taken;
    if (kind == 1 && made.taken % 2 == 0 && made.given % 2 == 0) made.groups = 2;
    int dilation_h = 1, dilation_w = 1, stride_h = 1, stride_w = 1;
    Padding pad;
    if (below(3)) {
      made.kernel_h = keeps ? 1 + 2 * below(3) : 1 + below(5);
      made.kernel_w = keeps ? 1 + 2 * below(3) : 1 + below(5);
      if (below(4) == 0) dilation_h = 1 + below(3);
      if (below(4) == 0) dilation_w = 1 + below(3);
      const int reach_h = (made.kernel_h - 1) * dilation_h, reach_w = (made.kernel_w - 1) * dilation_w;
      pad = {reach_h / 2, reach_w / 2, reach_h / 2, reach_w / 2};
      if (version_ > 3 && below(2)) {
        pad.top = below(reach_h + 1);
        pad.left = below(reach_w + 1);
        pad.bottom = reach_h - pad.top;
        pad.right = reach_w - pad.left;
      }
    }
    if (!keeps) {
      stride_h = 1 + below(3);
      stride_w = 1 + below(3);
      const int more_h = below(2), more_w = below(2);
      pad = {pad.top + more_h, pad.left + more_w, pad.bottom + more_h, pad.right + more_w};
    }
    while (p.out.h + pad.top + pad.bottom < (made.kernel_h - 1) * dilation_h + 1) ++pad.top, ++pad.bottom;
    while (p.out.w + pad.left + pad.right < (made.kernel_w - 1) * dilation_w + 1) ++pad.left, ++pad.right;
    add(p, R"({"op": "conv", "in": [)" + std::to_string(value) + R"(], "channels": )" + pair_of(made.taken, made.given) + R"(, "kernel": )" +
               pair_of(made.kernel_h, made.kernel_w) + R"(, "stride": )" + pair_of(stride_h, stride_w) + R"(, "padding": )" + padding(pad) +
               R"(, "dilation": )" + pair_of(dilation_h, dilation_w) + R"(, "groups": )" + std::to_string(made.groups) + R"(, "act": ")" + act + "\"}",
        made);
    p.out = {made.given, (p.out.h + pad.top + pad.bottom - (made.kernel_h - 1) * dilation_h - 1) / stride_h + 1,
             (p.out.w + pad.left + pad.right - (made.kernel_w - 1) * dilation_w - 1) / stride_w + 1};
  }

  // Pixel by pixel, to so many channels.
  void project(Draft& p, int value, int given) {
    Made made;
    made.conv = true;
    made.taken = p.out.c;
    made.given = given;
    made.takes_first = value == 0;
    add(p, R"({"op": "conv", "in": [)" + std::to_string(value) + R"(], "channels": )" + pair_of(made.taken, given) +
               R"(, "kernel": [1, 1], "stride": [1, 1], "padding": )" + padding(Padding{}) + R"(, "dilation": [1, 1], "groups": 1, "act": "none"})", made);
    p.out.c = given;
  }

  void one_op(Draft& p, bool keeps) {
    const int at = static_cast<int>(p.ops.size());
    const std::string in = R"("in": [)" + std::to_string(at) + "]";
    Made none, gained;
    gained.given = p.out.c;
    switch (below(12)) {
      case 0: add(p, R"({"op": "act", )" + in + R"(, "act": ")" + kActs[1 + below(7)] + "\"}", none); break;
      case 1: add(p, R"({"op": "affine", )" + in + R"(, "channels": )" + std::to_string(p.out.c) + "}", gained); break;
      case 2: add(p, R"({"op": "norm", )" + in + R"(, "channels": )" + std::to_string(p.out.c) + R"(, "eps": 1e-5})", gained); break;
      case 3: {  // squeeze and excitation
        const Extent whole = p.out;
        add(p, R"({"op": "mean", )" + in + "}", none);
        p.out = {whole.c, 1, 1};
        conv(p, at + 1, whole.c, true, act(), false, false);
        if (!(p.out == Extent{whole.c, 1, 1})) break;  // it became a value of its own
        p.out = whole;
        add(p, std::string(R"({"op": ")") + (below(3) ? "mul" : "add") + R"(", "in": )" + pair_of(at, at + 2) + "}", none);
        break;
      }
      case 4: add(p, std::string(R"({"op": ")") + (below(2) ? "mul" : "add") + R"(", "in": )" + pair_of(at, at) + "}", none); break;
      case 5: {
        if (keeps) return conv(p, at, 1 + below(20), keeps, act(), false, false);
        const bool largest = below(2), counts = !largest && below(2);
        Padding pad = {1, 1, 1, 1};
        if (version_ > 3) pad = counts ? Padding{1 + below(3), below(4), below(4), 1 + below(3)} : Padding{1, below(2), below(2), 1};
        add(p, R"({"op": "pool", )" + in + R"(, "kind": ")" + (largest ? "max" : "mean") + R"(", "kernel": [2, 2], "stride": [2, 1], "padding": )" + padding(pad) + R"(, "count_padding": )" +
                   (counts ? "true}" : "false}"), none);
        p.out = {p.out.c, (p.out.h + pad.top + pad.bottom - 2) / 2 + 1, p.out.w + pad.left + pad.right - 1};
        break;
      }
      case 6: {  // a residual
        const bool projects = below(2);
        conv(p, at, p.out.c, true, below(3) ? "none" : act(), false, false);
        if (projects) conv(p, at, p.out.c, true, "none", false, false);
        const int branch = static_cast<int>(p.ops.size()), other = projects ? at + 1 : at;
        add(p, R"({"op": "add", "in": )" + (below(2) ? pair_of(branch, other) : pair_of(other, branch)) + "}", none);
        if (below(2)) add(p, R"({"op": "act", "in": [)" + std::to_string(p.ops.size()) + R"(], "act": ")" + kActs[1 + below(3)] + "\"}", none);
        break;
      }
      case 7: {  // as stems end
        conv(p, at, 1 + below(20), true, kActs[below(4)], false, false);
        add(p, R"({"op": "pool", "in": [)" + std::to_string(at + 1) +
                   R"(], "kind": "max", "kernel": [3, 3], "stride": [1, 1], "padding": )" + padding(Padding{1, 1, 1, 1}) + R"(, "count_padding": false})", none);
        break;
      }
      default: {
        const std::string first = kActs[below(3)];
        conv(p, at, 1 + below(20), keeps, first, false, false);
        conv(p, at + 1, 1 + below(20), keeps, act(), true, first == "none");
      }
    }
  }

  Draft program(const Extent& in, int most, bool keeps) {
    Draft p;
    p.out = in;
    for (int i = below(most + 1); i > 0; --i) one_op(p, keeps);
    return p;
  }

  std::string part(int index, Extent& at) {
    const std::string name = "parts." + std::to_string(index);
    const bool gated = index > 0 && below(3);
    bool residual = index > 0 && below(2);
    const std::vector<std::string> options = gated ? options_ : std::vector<std::string>{width()};
    if (gated) seen_.push_back(at.c);
    Draft branch = program(at, 2, residual), shortcut;
    if (residual) {
      if (branch.out.h == at.h && branch.out.w == at.w && (branch.out.c != at.c || below(4) == 0) && below(2)) {
        shortcut.out = at;
        project(shortcut, 0, branch.out.c);
      } else if (!(branch.out == at)) {
        // Any size may have changed: it is made what the shortcut's is, which has one pixel.
        const int value = static_cast<int>(branch.ops.size());
        add(branch, R"({"op": "mean", "in": [)" + std::to_string(value) + "]}", {});
        branch.out.h = branch.out.w = 1;
        shortcut.out = at;
        add(shortcut, R"({"op": "mean", "in": [0]})", {});
        shortcut.out.h = shortcut.out.w = 1;
        if (branch.out.c != at.c) project(shortcut, 1, branch.out.c);
      }
    }
    if (branch.ops.empty()) conv(branch, 0, at.c, true, "none", false, false);
    // A branch that came out with another shape after all has no shortcut.
    residual = residual && (!shortcut.ops.empty() || branch.out == at);
    if (!residual) shortcut = {};
    for (const std::string& option : options) {
      if (option != "skip") tensors_of(name + "." + option, branch, bits_of(option));
    }
    const std::string shortcut_option = width();
    if (!shortcut.ops.empty()) tensors_of(name + ".shortcut", shortcut, bits_of(shortcut_option));
    blocks_ += blocks_.empty() ? "" : ", ";
    blocks_ += R"({"name": "part)" + std::to_string(index) + R"(", "branch_macs": 9, "shortcut_macs": 1, "gate_macs": 1, "gated": )" + flag(gated) + R"(, "fixed_bits": 8})";
    const bool identity = residual && shortcut.ops.empty(), clamps = residual && below(2) && !(stream_ && identity && grid_.zero != 0);
    at = branch.out;
    grid(name, identity, clamps);
    return R"({"name": "part)" + std::to_string(index) + R"(", "gated": )" + flag(gated) + R"(, "options": )" + list_of(options) + R"(, "residual": )" +
           flag(residual) + R"(, "skip_is_identity": )" + flag(identity && below(2)) + R"(, "branch": [)" + branch.json + R"(], "shortcut": [)" +
           shortcut.json + R"(], "shortcut_option": )" + (shortcut.ops.empty() ? "null" : "\"" + shortcut_option + "\"") + R"(, "after": [)" +
           (clamps ? std::string(R"({"op": "act", "in": [0], "act": ")") + kActs[1 + (stream_ ? 0 : below(7))] + "\"}" : "") + "]}";
  }

  static std::string flag(bool value) { return value ? "true" : "false"; }

  // 0: floats.
  static int bits_of(const std::string& option) {
    const int bits = option == "full" ? 32 : std::stoi(option);
    return bits <= 8 ? bits : 0;
  }

  std::string head(int index, const Extent& at, int classes) {
    Draft p;
    add(p, R"({"op": "mean", "in": [0]})", {});
    p.out = {at.c, 1, 1};
    project(p, 1, classes);
    const std::string option = width();
    tensors_of("parts." + std::to_string(index) + "." + option, p, bits_of(option));
    return R"({"name": "", "gated": false, "options": )" + list_of({option}) +
           R"(, "residual": false, "skip_is_identity": false, "branch": [)" + p.json + R"(], "shortcut": [], "shortcut_option": null, "after": []})";
  }

  void gate() {
    if (options_.size() == 1) return;
    const int options = static_cast<int>(options_.size()), width = 1 + below(5);
    const bool recurrent = below(2), budget = below(3) == 0;
    for (std::size_t g = 0; g < seen_.size(); ++g) {
      const std::string index = std::to_string(g);
      floats("gate.embed." + index + ".weight", {width, seen_[g]}, 1.0);
      floats("gate.embed." + index + ".bias", {width}, 1.0);
      if (recurrent) continue;
      floats("gate.out." + index + ".weight", {options, width}, 1.0);
      floats("gate.out." + index + ".bias", {options}, 1.0);
    }
    if (budget) {
      floats("gate.budget.weight", {width}, 1.0);
      floats("gate.budget.bias", {width}, 1.0);
    }
    if (recurrent) {
      floats("gate.lstm.weight_ih", {4 * width, width}, 1.0);
      floats("gate.lstm.weight_hh", {4 * width, width}, 1.0);
      floats("gate.lstm.bias", {4 * width}, 1.0);
      floats("gate.out.weight", {options, width}, 1.0);
      floats("gate.out.bias", {options}, 1.0);
    }
    gate_json_ = std::string(R"({"kind": ")") + (recurrent ? "recurrent" : "feedforward") + R"(", "width": )" + std::to_string(width) +
                 R"(, "budget_input": )" + (budget ? "true" : "false") + R"(, "output": ")" + (below(2) ? "logit" : "sensitivity") + R"("})";
  }

  // -- tensors ------------------------------------------------------------------------------------------

  struct Tensor {
    std::string name, shape;
    bool integers;
    Bytes bytes;
  };

  void put(const std::string& name, const std::vector<int>& shape, bool integers, const std::vector<float>& values) {
    Tensor tensor{name, "", integers, {}};
    for (int extent : shape) tensor.shape += (tensor.shape.empty() ? "" : ", ") + std::to_string(extent);
    for (float value : values) {
      if (integers) {
        tensor.bytes.push_back(static_cast<std::uint8_t>(static_cast<std::int8_t>(value)));
      } else {
        std::uint8_t raw[4];
        std::memcpy(raw, &value, sizeof raw);
        tensor.bytes.insert(tensor.bytes.end(), raw, raw + 4);
      }
    }
    tensors_.push_back(std::move(tensor));
  }

  static std::size_t count_of(const std::vector<int>& shape) {
    std::size_t count = 1;
    for (int extent : shape) count *= static_cast<std::size_t>(extent);
    return count;
  }

  void floats(const std::string& name, const std::vector<int>& shape, double spread) {
    std::vector<float> values(count_of(shape));
    for (float& value : values) value = static_cast<float>((below(2001) - 1000) * 0.001 * spread);
    put(name, shape, false, values);
  }

  // Of what a part gives; `kept` if it may be what the part takes.
  void grid(const std::string& name, bool kept, bool clamps) {
    if (!stream_) return;
    if (!kept) grid_ = {static_cast<float>(1 + below(40)) * 0.002f, clamps || below(2) ? 0 : below(256)};
    put(name + ".step", {1}, false, {grid_.step});
    if (grid_.zero != 0 || below(4) == 0) put(name + ".zero", {1}, false, {static_cast<float>(grid_.zero)});
    begun_ = true;
  }

  void tensors_of(const std::string& name, const Draft& p, int bits) {
    const float kInputs[] = {0.3f, 0.1f, 0.03f}, common = kInputs[below(3)];  // what several read alike they may share
    for (std::size_t j = 0; j < p.ops.size(); ++j) {
      const Made& op = p.ops[j];
      const std::string own = name + "." + std::to_string(j);
      if (!op.conv && op.given == 0) continue;
      const double spread = stream_ && j + 1 == p.ops.size() ? 30.0 : 1.0;  // over the levels
      floats(own + ".bias", {op.given}, spread);
      if (!op.conv) {
        floats(own + ".gain", {op.given}, spread);
        continue;
      }
      const std::vector<int> shape = {op.given, op.kernel_h, op.kernel_w, op.taken / op.groups};
      if (bits == 0) {
        floats(own + ".weight", shape, spread);
        continue;
      }
      const int largest = (1 << (bits - 1)) - 1, top = (1 << bits) - 1;
      std::vector<float> weights(count_of(shape));
      for (float& weight : weights) weight = static_cast<float>(below(2 * largest + 1) - largest);
      put(own + ".weight", shape, true, weights);
      floats(own + ".scale", {op.given}, spread * 4.0 / (largest * top));
      if (begun_ && op.takes_first && bits == 8 && below(4)) {  // the levels of the part before
        if (grid_.zero != 0 || below(4) == 0) put(own + ".zero", {1}, false, {static_cast<float>(grid_.zero)});
        continue;
      }
      const bool fed = op.may_be_fed && below(2);
      if (!fed) put(own + ".input", {1}, false, {static_cast<float>(top) * (below(4) ? common : kInputs[below(3)])});
      if ((!fed || op.fed_by_none) && below(2)) put(own + ".zero", {1}, false, {static_cast<float>(below(top + 1))});
    }
  }

  Bytes pack(const std::string& plan) {
    std::string quoted;
    for (char c : plan) {
      if (c == '"') quoted += '\\';
      quoted += c;
    }
    std::string header = R"({"__metadata__": {"fracskip": ")" + quoted + R"(", "digest": "sha256:"})";
    Bytes body;
    for (const Tensor& tensor : tensors_) {
      const std::size_t begin = body.size();
      body.insert(body.end(), tensor.bytes.begin(), tensor.bytes.end());
      header += ", \"" + tensor.name + R"(": {"dtype": ")" + (tensor.integers ? "I8" : "F32") + R"(", "shape": [)" + tensor.shape +
                R"(], "data_offsets": [)" + std::to_string(begin) + ", " + std::to_string(body.size()) + "]}";
    }
    header += "}";
    Bytes out;
    for (int byte = 0; byte < 8; ++byte) out.push_back(static_cast<std::uint8_t>(std::uint64_t{header.size()} >> (8 * byte)));
    out.insert(out.end(), header.begin(), header.end());
    out.insert(out.end(), body.begin(), body.end());
    return out;
  }

  Random& random_;
  std::vector<std::string> options_;
  std::vector<int> seen_;  // channels, by the gates
  int version_ = 4;  // of the plan
  bool stream_ = false, begun_ = false;  // of 8 bits; whether it flows
  Grid grid_;
  std::string gate_json_ = "null";
  std::string blocks_;  // of the plan's cost
  std::vector<Tensor> tensors_;
};

}  // namespace

Bytes random_network(Random& random) { return Generator(random).run(); }

}  // namespace fracskip
