// The Python module `fracskip.runtime._native`: checks what Python hands over, then lets go of the
// GIL around the engine.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "io/bundle.hpp"
#include "exec/engine.hpp"
#include "exec/finite.hpp"
#include "exec/peaks.hpp"
#include "exec/resize.hpp"
#include "interrupt.hpp"

namespace fracskip {
namespace {

constexpr std::size_t kMaxChain = 4, kMaxChannels = 65535;

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (Isa isa : kIsas) {
    if (isa_supported(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

Score parse_score(const std::string& name) {
  if (const auto score = score_named(name)) return *score;
  std::string allowed;
  for (const Score score : kScores) allowed += std::string(allowed.empty() ? "'" : ", '") + score_name(score) + "'";
  throw std::invalid_argument("unknown score '" + name + "': give one of " + allowed);
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

// What engines make of images for networks of smaller ones.
nb::ndarray<nb::numpy, std::uint8_t> resize(const Readable& images, int height, int width, const std::string& isa) {
  if (images.ndim() != 4) throw std::invalid_argument("images has shape " + shape_text(shape_of(images)) + ", it must be (B, H, W, C)");
  const std::vector<std::size_t> shape = shape_of(images);
  const std::uint8_t* from = checked<std::uint8_t>("images", images, shape);
  const auto fits = [](int to, std::size_t side) { return to >= 1 && static_cast<std::size_t>(to) <= side && side <= kMaxResized; };
  if (!fits(height, shape[1]) || !fits(width, shape[2]) || shape[3] < 1 || shape[3] > kMaxChannels) {
    throw std::invalid_argument("images of shape " + shape_text(shape) + " can't become " + std::to_string(height) + " by " + std::to_string(width) +
                                ": sizes of at least 1 and at most the images' own, up to " + std::to_string(kMaxResized));
  }
  const KernelSet& kernels = kernel_set(resolve(isa_named(isa)));
  const Resizer resizer(static_cast<int>(shape[1]), static_cast<int>(shape[2]), height, width, static_cast<int>(shape[3]), *kernels.resize);
  auto out = std::make_unique<std::uint8_t[]>(shape[0] * resizer.bytes());
  Buffer scratch(resizer.scratch_bytes());
  {
    nb::gil_scoped_release unlocked;
    for (std::size_t i = 0; i < shape[0]; ++i) {
      resizer.run(from + i * shape[1] * shape[2] * shape[3], out.get() + i * resizer.bytes(), scratch.as<std::uint8_t>());
    }
  }
  std::uint8_t* const values = out.release();
  nb::capsule owner(values, [](void* held) noexcept { delete[] static_cast<std::uint8_t*>(held); });
  return {values, {shape[0], static_cast<std::size_t>(height), static_cast<std::size_t>(width), shape[3]}, owner};
}

// What kernels are held against; only what the set has.
nb::dict peaks(const std::string& isa, std::size_t bytes, int threads) {
  const Isa wanted = resolve(isa_named(isa));
  check_threads(threads);
  PeakRates rates;
  {
    nb::gil_scoped_release unlocked;
    rates = measure_peaks(wanted, bytes, static_cast<std::size_t>(threads));
  }
  nb::dict found;
  const std::pair<const char*, double> named[] = {{"int8", rates.int8}, {"fp32", rates.fp32}, {"bf16", rates.bf16}, {"read", rates.read}};
  for (const auto& [name, rate] : named) {
    if (rate > 0) found[name] = rate;
  }
  return found;
}

class PyEngine {
 public:
  PyEngine(nb::bytes data, const std::string& isa, int threads) {
    const Isa wanted = isa_named(isa);
    check_threads(threads);  // before the bundle, which may take long
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(data.c_str());
    const std::size_t size = data.size();
    nb::gil_scoped_release unlocked;
    const SignalCheck signals;
    engine_.emplace(read_bundle(bytes, size), wanted, threads);
  }

  void run(const Readable& images, const Writable& logits, const Writable& latency_us, const std::vector<int>& networks,
           const std::vector<Writable>& decisions, const std::vector<std::optional<Readable>>& budgets,
           const std::vector<std::optional<Readable>>& multipliers, const std::vector<Readable>& thresholds,
           const std::vector<float>& temperatures, const std::string& score, const std::vector<Writable>& scores,
           const Writable& answered, const std::optional<Readable>& forced, const std::optional<Writable>& gate_us,
           bool averaged, const std::vector<Writable>& profile) const {
    const std::size_t count = images.ndim() ? images.shape(0) : 0;
    RunRequest request;
    request.count = count;
    take_images(request, images);
    request.logits = checked<float>("logits", logits, {count, static_cast<std::size_t>(engine_->classes())});
    request.latency_us = checked<float>("latency_us", latency_us, {count});
    request.answered = checked<std::uint8_t>("answered", answered, {count});
    request.score = parse_score(score);
    request.averaged = averaged;
    const std::size_t length = networks.size();
    if (length < 1 || length > kMaxChain) throw std::invalid_argument("networks must name 1 to " + std::to_string(kMaxChain) + " members");
    check_length("decisions", decisions.size(), length);
    check_length("budgets", budgets.size(), length);
    check_length("multipliers", multipliers.size(), length);
    check_length("thresholds", thresholds.size(), length - 1);
    check_length("temperatures", temperatures.size(), length);
    if (!scores.empty()) check_length("scores", scores.size(), length);
    if (forced && length > 1) throw std::invalid_argument("forced decisions are executed by one member");
    for (std::size_t k = 0; k < length; ++k) {
      if (networks[k] < 0 || static_cast<std::size_t>(networks[k]) >= engine_->networks()) {
        throw std::invalid_argument("networks holds " + std::to_string(networks[k]) + ", the engine has " + std::to_string(engine_->networks()));
      }
      Member member;
      member.network = static_cast<std::size_t>(networks[k]);
      const Executor& network = engine_->network(member.network);
      const auto blocks = static_cast<std::size_t>(network.gated_blocks());
      const std::string at = "[" + std::to_string(k) + "]";
      member.decisions = checked<std::uint8_t>("decisions" + at, decisions[k], {count, blocks});
      if (budgets[k] && !network.takes_budget) throw std::invalid_argument("network " + std::to_string(networks[k]) + " takes no budgets");
      if (!budgets[k] && network.takes_budget && !forced) {
        throw std::invalid_argument("network " + std::to_string(networks[k]) + " needs budgets, one for each image");
      }
      if (budgets[k]) member.budgets = checked<float>("budgets" + at, *budgets[k], {count});
      if (multipliers[k]) member.multipliers = checked<float>("multipliers" + at, *multipliers[k], {count});
      if (k + 1 < length) member.thresholds = checked<float>("thresholds" + at, thresholds[k], {count});
      if (!scores.empty()) member.scores = checked<float>("scores" + at, scores[k], {count});
      member.temperature = temperatures[k];
      request.chain.push_back(member);
    }
    const Executor& first = engine_->network(request.chain[0].network);
    const auto blocks = static_cast<std::size_t>(first.gated_blocks());
    if (forced) request.forced = checked<std::uint8_t>("forced", *forced, {count, blocks});
    if (gate_us) {
      const auto another = [&](const Member& member) { return member.network != request.chain[0].network; };
      if (std::any_of(request.chain.begin(), request.chain.end(), another)) {
        throw std::invalid_argument("gate_us is of the gates of one network, and this chain has several");
      }
      request.gate_us = checked<float>("gate_us", *gate_us, {count, blocks});
    }

    std::vector<StepTimes> profiles;
    std::vector<double*> totals;
    if (!profile.empty()) {
      check_length("profile", profile.size(), engine_->networks());
      for (std::size_t k = 0; k < profile.size(); ++k) {
        const std::size_t rows = engine_->network(k).profile_rows().size();
        totals.push_back(checked<double>("profile[" + std::to_string(k) + "]", profile[k], {rows, 2}));
        profiles.push_back({std::vector<StepTimes::Row>(rows)});
      }
      request.profiles = &profiles;
    }

    // The caller's references keep the arrays alive.
    nb::gil_scoped_release unlocked;
    check_values(request);
    check_forced(request, first);
    const SignalCheck signals;
    if (count > 0) engine_->run(request);
    for (std::size_t k = 0; k < profiles.size(); ++k) {
      double* total = totals[k];
      for (const StepTimes::Row& row : profiles[k].rows) {
        *total++ += row.us;
        *total++ += row.calls;
      }
    }
  }

  std::vector<std::tuple<std::string, std::string, std::string, std::int64_t, std::int64_t>> steps(int network) const {
    std::vector<std::tuple<std::string, std::string, std::string, std::int64_t, std::int64_t>> rows;
    for (const Executor::ProfileRow& row : at(network).profile_rows()) rows.emplace_back(row.part, row.option, row.info.kernel, row.info.macs, row.info.bytes);
    return rows;
  }

  std::size_t networks() const { return engine_->networks(); }
  int gated_blocks(int network) const { return at(network).gated_blocks(); }
  int options(int network) const { return at(network).options(); }
  int classes() const { return engine_->classes(); }
  int threads() const { return engine_->threads(); }
  std::string isa() const { return isa_name(engine_->isa()); }

  std::vector<std::tuple<int, std::string, std::string, std::vector<std::string>>> kernels() const {
    std::vector<std::tuple<int, std::string, std::string, std::vector<std::string>>> out;
    for (std::size_t k = 0; k < engine_->networks(); ++k) {
      for (const KernelInfo& info : engine_->network(k).kernel_infos()) {
        out.emplace_back(static_cast<int>(k), info.part, info.option, info.kernels);
      }
    }
    return out;
  }

 private:
  const Executor& at(int network) const {
    if (network < 0 || static_cast<std::size_t>(network) >= engine_->networks()) {
      throw nb::index_error(("the engine has " + std::to_string(engine_->networks()) + " networks, counted from 0").c_str());
    }
    return engine_->network(static_cast<std::size_t>(network));
  }

  static void check_length(const char* name, std::size_t found, std::size_t wanted) {
    if (found == wanted) return;
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(found) + " entries, this chain needs " + std::to_string(wanted));
  }

  void take_images(RunRequest& request, const Readable& images) const {
    const Extent& image = engine_->image();
    const std::vector<std::size_t> shape = {request.count, static_cast<std::size_t>(image.height), static_cast<std::size_t>(image.width),
                                            static_cast<std::size_t>(image.channels)};
    if (holds<float>(images)) {
      request.pixels = PixelType::f32;
      request.images = checked<float>("images", images, shape);
      if (!engine_->takes_floats()) throw std::invalid_argument("images must be uint8: this bundle's networks differ in size, mean or std");
    } else if (holds<std::uint8_t>(images)) {
      request.images = checked<std::uint8_t>("images", images, shape);
    } else {
      throw nb::type_error("images must be uint8, or float32 and already normalised");
    }
  }

  void check_values(const RunRequest& request) const {
    const auto require = [&](const char* name, const float* values, std::size_t count) {
      if (values && !all_finite(values, count)) throw std::invalid_argument(std::string(name) + " hold values that are not finite");
    };
    if (request.pixels == PixelType::f32) require("images", static_cast<const float*>(request.images), request.count * engine_->image().values());
    for (const Member& member : request.chain) {
      for (std::size_t i = 0; member.budgets && i < request.count; ++i) {
        if (!(member.budgets[i] > 0.f && member.budgets[i] <= 1.f)) throw std::invalid_argument("budgets must be shares in (0, 1]");
      }
      require("multipliers", member.multipliers, request.count);
      require("thresholds", member.thresholds, request.count);
      if (!(member.temperature > 0.f && std::isfinite(member.temperature))) throw std::invalid_argument("temperatures must be above zero and finite");
    }
  }

  static void check_forced(const RunRequest& request, const Executor& network) {
    const auto blocks = static_cast<std::size_t>(network.gated_blocks());
    const auto options = static_cast<unsigned>(network.options());
    for (std::size_t i = 0; request.forced && i < request.count * blocks; ++i) {
      if (request.forced[i] >= options) {
        throw std::invalid_argument("forced holds " + std::to_string(request.forced[i]) +
                                    ", the network has " + std::to_string(options) + " options");
      }
      if (request.forced[i] < network.first_options[i % blocks]) {
        throw std::invalid_argument("forced skips " + network.block_name(i % blocks) + ", which has no shortcut and can't be skipped");
      }
    }
  }

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
  m.def("resize", &fracskip::resize, nb::arg("images").noconvert(), nb::arg("height"), nb::arg("width"), nb::arg("isa") = "auto",
        "Images (B, H, W, C) brought to another size, as an engine does for smaller networks.");
  m.def("peaks", &fracskip::peaks, nb::arg("isa"), nb::arg("bytes"), nb::arg("threads") = 1,
        "What an instruction set's kernels are held against: measured in a quarter of a second; see _native.pyi.");
  nb::class_<PyEngine>(m, "Engine", "Runs the networks of a bundle. Any number of threads may call `run` at once.")
      .def(nb::init<nb::bytes, const std::string&, int>(), nb::arg("data"), nb::arg("isa") = "auto",
           nb::arg("threads") = 1)
      .def("run", &PyEngine::run, nb::arg("images").noconvert(), nb::arg("logits").noconvert(),
           nb::arg("latency_us").noconvert(), nb::kw_only(), nb::arg("networks"), nb::arg("decisions").noconvert(),
           nb::arg("budgets").noconvert(), nb::arg("multipliers").noconvert(), nb::arg("thresholds").noconvert(),
           nb::arg("temperatures"), nb::arg("score"), nb::arg("scores").noconvert(), nb::arg("answered").noconvert(),
           nb::arg("forced").noconvert() = nb::none(), nb::arg("gate_us").noconvert() = nb::none(),
           nb::arg("averaged") = false, nb::arg("profile").noconvert() = std::vector<fracskip::Writable>(),
           "Classifies images (B, H, W, C) by a chain of members; see _native.pyi.")
      .def("gated_blocks", &PyEngine::gated_blocks, nb::arg("network"))
      .def("options", &PyEngine::options, nb::arg("network"))
      .def("steps", &PyEngine::steps, nb::arg("network"), "(part, option, kernel, macs, bytes) of each row of a profile.")
      .def("kernels", &PyEngine::kernels, "(network, part, option, kernels) of what runs each option.")
      .def_prop_ro("networks", &PyEngine::networks)
      .def_prop_ro("classes", &PyEngine::classes)
      .def_prop_ro("threads", &PyEngine::threads)
      .def_prop_ro("isa", &PyEngine::isa, "The instruction set that is used.");
}
