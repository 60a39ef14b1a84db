// The Python module `fracskip.runtime._native`: checks what Python hands over, then lets go of the
// GIL around the engine.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "io/bundle.hpp"
#include "exec/engine.hpp"
#include "interrupt.hpp"

namespace nb = nanobind;

namespace fracskip {
namespace {

constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512_vnni, Isa::amx};
constexpr int kMaxThreads = 256;

using Readable = nb::ndarray<nb::ro, nb::device::cpu>;
using Writable = nb::ndarray<nb::device::cpu>;

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (Isa isa : kIsas) {
    if (isa_supported(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

Isa parse_isa(const std::string& name) {
  if (name == "auto") return Isa::automatic;
  std::string allowed = "'auto'";
  for (Isa isa : kIsas) {
    if (name == isa_name(isa)) return isa;
    allowed += std::string(", '") + isa_name(isa) + "'";
  }
  throw std::invalid_argument("unknown instruction set '" + name + "': give one of " + allowed);
}

std::string shape_text(const std::vector<std::size_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

template <typename Array>
std::vector<std::size_t> shape_of(const Array& array) {
  std::vector<std::size_t> shape;
  for (std::size_t i = 0; i < array.ndim(); ++i) shape.push_back(array.shape(i));
  return shape;
}

template <typename Array>
bool is_contiguous(const Array& array) {
  if (array.size() == 0) return true;
  std::int64_t expected = 1;
  for (std::size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.stride(i) != expected) return false;
    expected *= static_cast<std::int64_t>(array.shape(i));
  }
  return true;
}

template <typename T, typename Array>
bool holds(const Array& array) {
  return array.dtype() == nb::dtype<T>();
}

// Refuses what is not a C-contiguous array of T in that shape.
template <typename T, typename Array>
auto* checked(const char* name, const Array& array, const std::vector<std::size_t>& shape) {
  if (!holds<T>(array)) {
    const char* type = std::is_same_v<T, float> ? "float32" : "uint8";
    throw nb::type_error((std::string(name) + " must be " + type).c_str());
  }
  if (shape_of(array) != shape) {
    throw std::invalid_argument(std::string(name) + " has shape " + shape_text(shape_of(array)) +
                                ", it must be " + shape_text(shape));
  }
  if (!is_contiguous(array)) {
    throw std::invalid_argument(std::string(name) + " must be C-contiguous");
  }
  using Held = std::remove_pointer_t<decltype(array.data())>;
  return static_cast<std::conditional_t<std::is_const_v<Held>, const T*, T*>>(array.data());
}

// A float is finite unless its exponent is all ones; as integers this vectorises.
bool all_finite(const float* values, std::size_t count) {
  unsigned bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !bad;
}

// Raises what Python's signal handlers raise, such as KeyboardInterrupt. They only run on the main thread, so
// no other one waits for the GIL.
class SignalCheck final : public InterruptCheck {
  void check() override {
    if (elsewhere_) return;
    nb::gil_scoped_acquire locked;
    const nb::object main = nb::module_::import_("threading").attr("main_thread")();
    elsewhere_ = nb::cast<unsigned long>(main.attr("ident")) != PyThread_get_thread_ident();
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }

  bool elsewhere_ = false;
};

class PyEngine {
 public:
  PyEngine(nb::bytes data, const std::string& isa, int threads) {
    const Isa wanted = parse_isa(isa);
    if (threads < 1 || threads > kMaxThreads) {
      throw std::invalid_argument("threads must be 1 to " + std::to_string(kMaxThreads));
    }
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(data.c_str());
    const std::size_t size = data.size();
    nb::gil_scoped_release unlocked;
    const SignalCheck signals;
    const Network network = read_bundle(bytes, size);
    image_ = {static_cast<std::size_t>(network.height), static_cast<std::size_t>(network.width),
              static_cast<std::size_t>(network.channels)};
    takes_budget_ = !network.gate.budget_weight.empty();
    engine_.emplace(network, wanted, threads);
  }

  void run(const Readable& images, const Writable& logits, const Writable& decisions,
           const Writable& latency_us, const std::optional<Readable>& forced,
           const std::optional<Readable>& budgets, const std::optional<Readable>& multipliers,
           const std::optional<Readable>& thresholds, const std::optional<Readable>& second_budgets,
           const std::optional<Readable>& second_multipliers, const std::optional<Writable>& second_decisions,
           const std::optional<Writable>& escalated, const std::optional<Writable>& gate_us) const {
    const std::size_t count = images.ndim() ? images.shape(0) : 0;
    const auto blocks = static_cast<std::size_t>(engine_->gated_blocks());
    const auto options = static_cast<unsigned>(engine_->options());
    const std::vector<std::size_t> image_shape = {count, image_[0], image_[1], image_[2]};
    RunRequest request;
    request.count = count;
    if (holds<float>(images)) {
      request.pixels = PixelType::f32;
      request.images = checked<float>("images", images, image_shape);
    } else if (holds<std::uint8_t>(images)) {
      request.pixels = PixelType::u8;
      request.images = checked<std::uint8_t>("images", images, image_shape);
    } else {
      throw nb::type_error("images must be uint8, or float32 and already normalised");
    }
    request.logits =
        checked<float>("logits", logits, {count, static_cast<std::size_t>(engine_->classes())});
    request.decisions = checked<std::uint8_t>("decisions", decisions, {count, blocks});
    request.latency_us = checked<float>("latency_us", latency_us, {count});
    if (gate_us) request.gate_us = checked<float>("gate_us", *gate_us, {count, blocks});
    if (forced) request.forced = checked<std::uint8_t>("forced", *forced, {count, blocks});
    if (budgets && !takes_budget_) {
      throw std::invalid_argument("this network takes no budgets");
    }
    if (!budgets && takes_budget_ && !forced) {
      throw std::invalid_argument("this network needs budgets, one for each image");
    }
    if (budgets) request.budgets = checked<float>("budgets", *budgets, {count});
    if (multipliers) request.multipliers = checked<float>("multipliers", *multipliers, {count});
    const bool cascade = thresholds.has_value();
    if (cascade != second_decisions.has_value() || cascade != escalated.has_value()) {
      throw std::invalid_argument("thresholds need second_decisions and escalated, and these need thresholds");
    }
    if (!cascade && (second_budgets || second_multipliers)) {
      throw std::invalid_argument("a second member needs thresholds");
    }
    if (cascade) {
      if (forced) throw std::invalid_argument("forced decisions are executed by one member");
      if (second_budgets.has_value() != takes_budget_) {
        throw std::invalid_argument("second_budgets are for networks that take budgets, which need them");
      }
      request.thresholds = checked<float>("thresholds", *thresholds, {count});
      if (second_budgets) request.second_budgets = checked<float>("second_budgets", *second_budgets, {count});
      if (second_multipliers) request.second_multipliers = checked<float>("second_multipliers", *second_multipliers, {count});
      request.second_decisions = checked<std::uint8_t>("second_decisions", *second_decisions, {count, blocks});
      request.escalated = checked<std::uint8_t>("escalated", *escalated, {count});
    }

    // The caller's references keep the arrays alive.
    nb::gil_scoped_release unlocked;
    check_values(request, image_[0] * image_[1] * image_[2], blocks, options);
    check_skips(request, blocks);
    const SignalCheck signals;
    if (count > 0) engine_->run(request);
  }

  int gated_blocks() const { return engine_->gated_blocks(); }
  int classes() const { return engine_->classes(); }
  int options() const { return engine_->options(); }
  int threads() const { return engine_->threads(); }
  std::string isa() const { return isa_name(engine_->isa()); }

  std::vector<std::tuple<std::string, std::string, std::vector<std::string>>> kernels() const {
    std::vector<std::tuple<std::string, std::string, std::vector<std::string>>> out;
    for (const KernelInfo& info : engine_->kernels()) {
      out.emplace_back(info.part, info.option, info.kernels);
    }
    return out;
  }

 private:
  static void check_values(const RunRequest& request, std::size_t image_elements,
                           std::size_t blocks, unsigned options) {
    if (request.pixels == PixelType::f32 &&
        !all_finite(static_cast<const float*>(request.images), request.count * image_elements)) {
      throw std::invalid_argument("images hold values that are not finite");
    }
    for (std::size_t i = 0; request.forced && i < request.count * blocks; ++i) {
      if (request.forced[i] >= options) {
        throw std::invalid_argument("forced holds " + std::to_string(request.forced[i]) +
                                    ", the network has " + std::to_string(options) + " options");
      }
    }
    for (const float* budgets : {request.budgets, request.second_budgets}) {
      for (std::size_t i = 0; budgets && i < request.count; ++i) {
        if (!(budgets[i] > 0.f && budgets[i] <= 1.f)) {
          throw std::invalid_argument("budgets must be shares in (0, 1]");
        }
      }
    }
    for (const float* multipliers : {request.multipliers, request.second_multipliers}) {
      if (multipliers && !all_finite(multipliers, request.count)) {
        throw std::invalid_argument("multipliers hold values that are not finite");
      }
    }
    if (request.thresholds && !all_finite(request.thresholds, request.count)) {
      throw std::invalid_argument("thresholds hold values that are not finite");
    }
  }

  void check_skips(const RunRequest& request, std::size_t blocks) const {
    for (std::size_t i = 0; request.forced && i < request.count * blocks; ++i) {
      const int block = static_cast<int>(i % blocks);
      if (request.forced[i] < engine_->first_option(block)) {
        throw std::invalid_argument("forced skips " + engine_->block_name(block) + ", which has no shortcut and can't be skipped");
      }
    }
  }

  std::vector<std::size_t> image_;
  bool takes_budget_ = false;
  std::optional<Engine> engine_;  // neither copied nor moved, so made in place
};

}  // namespace
}  // namespace fracskip

NB_MODULE(_native, m) {
  using fracskip::PyEngine;
  m.doc() = "The native engine. Python code uses fracskip.runtime instead.";
  nb::exception<fracskip::BundleError>(m, "BundleError", PyExc_ValueError);
  m.def("isas", &fracskip::supported_isas,
        "Names of the instruction sets that this CPU can run, ascending.");
  nb::class_<PyEngine>(m, "Engine", "Runs a bundle. Any number of threads may call `run` at once.")
      .def(nb::init<nb::bytes, const std::string&, int>(), nb::arg("data"), nb::arg("isa") = "auto",
           nb::arg("threads") = 1)
      .def("run", &PyEngine::run, nb::arg("images").noconvert(), nb::arg("logits").noconvert(),
           nb::arg("decisions").noconvert(), nb::arg("latency_us").noconvert(),
           nb::arg("forced").noconvert() = nb::none(), nb::arg("budgets").noconvert() = nb::none(),
           nb::arg("multipliers").noconvert() = nb::none(),
           nb::arg("thresholds").noconvert() = nb::none(),
           nb::arg("second_budgets").noconvert() = nb::none(),
           nb::arg("second_multipliers").noconvert() = nb::none(),
           nb::arg("second_decisions").noconvert() = nb::none(),
           nb::arg("escalated").noconvert() = nb::none(),
           nb::arg("gate_us").noconvert() = nb::none(),
           "Classifies images (B, H, W, C) into logits (B, N), decisions (B, L), latency_us (B,).")
      .def("kernels", &PyEngine::kernels, "(block, option, kernels) of what runs each option.")
      .def_prop_ro("gated_blocks", &PyEngine::gated_blocks)
      .def_prop_ro("classes", &PyEngine::classes)
      .def_prop_ro("options", &PyEngine::options)
      .def_prop_ro("threads", &PyEngine::threads)
      .def_prop_ro("isa", &PyEngine::isa, "The instruction set that is used.");
}
