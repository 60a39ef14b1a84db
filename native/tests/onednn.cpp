// Our convolutions beside oneDNN's: the same integers, and how long each takes, interleaved.
// Built where CMake finds oneDNN 3 (make onednn-check).
//
// Without VNNI oneDNN adds pairs of products in 16 saturating bits, so it is exact only for weights
// of 7 bits; that is what is compared. Times do not depend on values.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include <oneapi/dnnl/dnnl.hpp>

#include "plan/convolution.hpp"
#include "exec/engine.hpp"

using namespace fracskip;

namespace {

struct Shape {
  int size, channels;
};

// A 3x3 convolution of `size` x `size` x `channels` in oneDNN: dense NHWC, weights in its own format.
class Theirs {
 public:
  using Type = dnnl::memory::data_type;

  Theirs(const Shape& shape, bool integer, const Conv& conv, const void* input)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    const dnnl::memory::dims image{1, shape.channels, shape.size, shape.size};
    const dnnl::memory::dims filter{shape.channels, shape.channels, 3, 3};
    const Type in = integer ? Type::u8 : Type::f32, weight = integer ? Type::s8 : Type::f32;
    const Type out = integer ? Type::s32 : Type::f32;
    using Tag = dnnl::memory::format_tag;
    const dnnl::convolution_forward::primitive_desc description(
        engine_, dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, {image, in, Tag::nhwc},
        {filter, weight, Tag::any}, {image, out, Tag::nhwc}, {1, 1}, {1, 1}, {1, 1});
    name_ = description.impl_info_str();
    source_ = dnnl::memory(description.src_desc(), engine_, const_cast<void*>(input));
    const void* values = integer ? static_cast<const void*>(conv.weight_i8.data()) : conv.weight_f32.data();
    dnnl::memory plain({filter, weight, Tag::ohwi}, engine_, const_cast<void*>(values));
    weights_ = dnnl::memory(description.weights_desc(), engine_);
    dnnl::reorder(plain, weights_).execute(stream_, plain, weights_);
    target_ = dnnl::memory(description.dst_desc(), engine_);
    primitive_ = dnnl::convolution_forward(description);
    stream_.wait();
  }

  void run() {
    primitive_.execute(stream_, {{DNNL_ARG_SRC, source_}, {DNNL_ARG_WEIGHTS, weights_}, {DNNL_ARG_DST, target_}});
    stream_.wait();
  }
  template <class T>
  const T* output() const { return static_cast<const T*>(target_.get_data_handle()); }
  const std::string& name() const { return name_; }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::memory source_, weights_, target_;
  dnnl::convolution_forward primitive_;
  std::string name_;
};

template <class F>
double microseconds(F run) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) run();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / 20;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Gives the largest difference.
double compare(const Shape& shape, bool integer) {
  std::mt19937 random(3);
  std::uniform_int_distribution<int> level(0, 255), weight(-63, 63);
  std::uniform_real_distribution<float> real(-1.f, 1.f);
  const int n = shape.size, c = shape.channels;
  Conv conv;
  conv.in = conv.out = c;
  conv.window = {3, 3, 1, 1, 1, 1, 1, 1};
  for (int i = 0; i < c * c * 9; ++i) {
    if (integer) conv.weight_i8.push_back(static_cast<std::int8_t>(weight(random)));
    else conv.weight_f32.push_back(real(random));
  }
  conv.scale.assign(c, 1.f);  // the sums themselves
  conv.bias.assign(c, 0.f);
  const Layout in = Layout::make(n, n, c, 1, integer ? Element::u8 : Element::f32), out = Layout::make(n, n, c, 0, Element::f32);
  Buffer padded(in.bytes()), result(out.bytes());
  std::vector<std::uint8_t> levels;
  std::vector<float> values;
  for (int h = 0; h < n; ++h) {
    for (int i = 0; i < n * c; ++i) {
      const std::ptrdiff_t at = in.origin() + h * in.row + i;
      if (integer) levels.push_back(padded.as<std::uint8_t>()[at] = static_cast<std::uint8_t>(level(random)));
      else values.push_back(padded.as<float>()[at] = real(random));
    }
  }
#if defined(FRACSKIP_X86)
  const KernelSet& set = kernel_set(best_isa());
#else
  const KernelSet& set = kScalarKernels;
#endif
  const Convolution ours(conv, set, {});
  ConvArgs args = ours.arguments();
  args.in = integer ? static_cast<const void*>(padded.as<std::uint8_t>()) : padded.as<float>();
  args.in_row = in.row;
  args.in_pixel = in.pixel;
  args.out_h = args.out_w = n;
  args.out = result.as<float>();
  args.out_type = Element::f32;
  args.out_row = out.row;
  args.out_pixel = out.pixel;
  Buffer scratch(ours.scratch_bytes(args));
  args.scratch = scratch.as<void>();
  Theirs theirs(shape, integer, conv, integer ? static_cast<const void*>(levels.data()) : values.data());
  // oneDNN sets tiles up for itself and leaves them so.
  const auto run_ours = [&] {
    const KernelState state(set);
    ours.run(args);
  };
  run_ours();
  theirs.run();
  double worst = 0;
  for (int h = 0; h < n; ++h) {
    for (int i = 0; i < n * c; ++i) {
      const float mine = result.as<float>()[h * out.row + i];
      const float other = integer ? static_cast<float>(theirs.output<std::int32_t>()[h * n * c + i]) : theirs.output<float>()[h * n * c + i];
      worst = std::max(worst, static_cast<double>(std::fabs(mine - other)));
    }
  }
  std::vector<double> mine, other;
  for (int round = 0; round < 41; ++round) {
    mine.push_back(microseconds(run_ours));
    other.push_back(microseconds([&] { theirs.run(); }));
  }
  std::printf("%2d channels, %2dx%-2d %s: %-24s %6.2f us, oneDNN %-20s %6.2f us, ratio %.2f; largest difference %g\n", c, n, n,
              integer ? "int8" : "fp32", ours.kernel_name().c_str(), median(mine), theirs.name().c_str(), median(other),
              median(other) / median(mine), worst);
  return worst;
}

}  // namespace

int main() {
  std::printf("oneDNN %d.%d.%d\n", dnnl::version()->major, dnnl::version()->minor, dnnl::version()->patch);
  bool good = true;
  for (const Shape& shape : {Shape{32, 16}, Shape{16, 32}, Shape{8, 64}}) {
    good &= compare(shape, true) == 0;
    good &= compare(shape, false) < 1e-4 * shape.channels;
  }
  std::puts(good ? "equal" : "DIFFERENT");
  return good ? 0 : 1;
}
