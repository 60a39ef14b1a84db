// Executes networks of version 1.
#include <algorithm>
#include <cstring>
#include <utility>

#include "exec/executor.hpp"
#include "plan/plan.hpp"

namespace fracskip {
namespace {

class ResidualWorker final : public Worker {
 public:
  ResidualWorker(const Plan& plan, const ImageReader& reader, const std::vector<std::size_t>& gated)
      : plan_(plan),
        reader_(reader),
        gated_(gated),
        sums_(sizeof(float) * plan.most_channels),
        pooled_(sizeof(float) * plan.most_channels),
        scratch_(plan.scratch_bytes) {
    for (const Layout& layout : plan.layouts) activations_.emplace_back(layout.bytes());
    if (gated_[0] < plan.blocks.size()) {
      kept_ = Buffer(begun().size());
      kept_sums_ = Buffer(sums_.size());
    }
  }

  void begin(const void* image, PixelType pixels) override {
    reader_.take(image, pixels, plan_.layouts[plan_.image], reinterpret_cast<float*>(at(plan_.image)));
    for (const StemStep& step : plan_.stem) {
      if (step.is_conv) convolve(step.conv);
      else pool(step.pool);
    }
    if (!plan_.stem.back().is_conv) sum_up(plan_.stem.back().pool.out);
    execute_fixed(0, gated_[0]);
  }

  const float* pooled(std::size_t block) override {
    mean(plan_.layouts[plan_.blocks[gated_[block]].in].c, plan_.blocks[gated_[block]].pooled_factor);
    return pooled_.as<float>();
  }

  void execute(std::size_t block, std::size_t option) override {
    execute(plan_.blocks[gated_[block]].options[option]);
    execute_fixed(gated_[block] + 1, gated_[block + 1]);
  }

  void classify(float* logits) override {
    const Linear& head = plan_.head;
    mean(head.in, plan_.head_factor);
    const float* pooled = pooled_.as<float>();
    for (int o = 0; o < head.out; ++o) {
      const float* weight = &head.weight[static_cast<std::size_t>(o) * head.in];
      float sum[8] = {};  // lanes of a fixed order
      for (int i = 0; i < head.in; ++i) sum[i & 7] += weight[i] * pooled[i];
      for (int i = 1; i < 8; ++i) sum[0] += sum[i];
      logits[o] = sum[0] + head.bias[o];
    }
  }

  // The stream, borders and all, and its channel sums.
  void keep() override {
    std::memcpy(kept_.as<void>(), begun().as<void>(), kept_.size());
    std::memcpy(kept_sums_.as<void>(), sums_.as<void>(), sums_.size());
  }
  void bring_back() override {
    std::memcpy(begun().as<void>(), kept_.as<void>(), kept_.size());
    std::memcpy(sums_.as<void>(), kept_sums_.as<void>(), sums_.size());
  }

 private:
  Buffer& begun() { return activations_[static_cast<std::size_t>(plan_.blocks[gated_[0]].in)]; }

  char* at(int activation) {
    const Layout& l = plan_.layouts[static_cast<std::size_t>(activation)];
    return activations_[static_cast<std::size_t>(activation)].as<char>() + l.origin() * static_cast<std::ptrdiff_t>(l.bytes_each());
  }

  void convolve(const ConvStep& step) {
    ConvArgs args = step.args;
    const Layout& in = plan_.layouts[static_cast<std::size_t>(step.in)];
    const Window& window = step.conv->window();
    const std::ptrdiff_t first_tap = window.pad_h * in.row + static_cast<std::ptrdiff_t>(window.pad_w) * in.pixel;
    args.in = at(step.in) - first_tap * static_cast<std::ptrdiff_t>(in.bytes_each());
    args.out = at(step.out);
    if (step.residual != kNone) args.residual = at(step.residual);
    args.scratch = scratch_.as<void>();
    if (step.sums) {
      args.sums = sums_.as<void>();
      std::memset(args.sums, 0, sizeof(float) * static_cast<std::size_t>(args.out_blocks) * kBlock);
    }
    step.conv->run(args);
  }

  template <class T>
  void pool_as(const PoolStep& step) {
    const Layout &in = plan_.layouts[step.in], &out = plan_.layouts[step.out];
    const Window& w = step.window;
    // Values are not negative, so the border's zeros never win.
    const T* from = reinterpret_cast<const T*>(at(step.in)) - w.pad_h * in.row - static_cast<std::ptrdiff_t>(w.pad_w) * in.pixel;
    T* to = reinterpret_cast<T*>(at(step.out));
    for (int oh = 0; oh < out.h; ++oh) {
      for (int ow = 0; ow < out.w; ++ow) {
        T* pixel = to + oh * out.row + static_cast<std::ptrdiff_t>(ow) * out.pixel;
        std::memset(pixel, 0, sizeof(T) * static_cast<std::size_t>(out.pixel));
        for (int y = 0; y < w.kernel_h; ++y) {
          for (int x = 0; x < w.kernel_w; ++x) {
            const T* other = from + (oh * w.stride_h + y) * in.row + static_cast<std::ptrdiff_t>(ow * w.stride_w + x) * in.pixel;
            for (int c = 0; c < out.pixel; ++c) pixel[c] = other[c] > pixel[c] ? other[c] : pixel[c];
          }
        }
      }
    }
  }
  void pool(const PoolStep& step) {
    if (plan_.layouts[step.in].element == Element::f32) pool_as<float>(step);
    else pool_as<std::uint8_t>(step);
  }

  template <class T, class Sum>
  void sum_as(int activation) {
    const Layout& l = plan_.layouts[static_cast<std::size_t>(activation)];
    Sum* sums = sums_.as<Sum>();
    std::memset(sums, 0, sizeof(Sum) * static_cast<std::size_t>(l.pixel));
    for (int h = 0; h < l.h; ++h) {
      const T* row = reinterpret_cast<const T*>(at(activation)) + h * l.row;
      for (int w = 0; w < l.w; ++w, row += l.pixel) {
        for (int c = 0; c < l.pixel; ++c) sums[c] += row[c];
      }
    }
  }
  void sum_up(int activation) {
    if (plan_.integer_stream) sum_as<std::uint8_t, std::uint32_t>(activation);
    else sum_as<float, float>(activation);
  }

  void mean(int channels, float factor) {
    float* pooled = pooled_.as<float>();
    if (plan_.integer_stream) {
      // Sums stay under 2^31 (the reader limits activations), and signed conversion is quicker.
      const std::int32_t* sums = sums_.as<std::int32_t>();
      for (int c = 0; c < channels; ++c) pooled[c] = static_cast<float>(sums[c]) * factor;
    } else {
      const float* sums = sums_.as<float>();
      for (int c = 0; c < channels; ++c) pooled[c] = sums[c] * factor;
    }
  }

  void execute_fixed(std::size_t begin, std::size_t end) {
    for (std::size_t b = begin; b < end; ++b) execute(plan_.blocks[b].options[0]);
  }

  void execute(const PlannedOption& option) {
    if (option.map.function) {
      const MapStep& map = option.map;
      const Layout &in = plan_.layouts[static_cast<std::size_t>(map.in)], &out = plan_.layouts[static_cast<std::size_t>(map.out)];
      map.function({at(map.in), in.row, at(map.out), out.row, in.pixel, out.pixel, in.h, in.w, in.pixel, map.step, map.scale, map.top});
    }
    for (const ConvStep& step : option.convs) convolve(step);
  }

  const Plan& plan_;
  const ImageReader& reader_;
  const std::vector<std::size_t>& gated_;
  std::vector<Buffer> activations_;
  Buffer sums_, pooled_, scratch_;
  Buffer kept_, kept_sums_;
};

class ResidualExecutor final : public Executor {
 public:
  ResidualExecutor(const Network& network, const KernelSet& set)
      : Executor(network, set, count_gated(network)), plan_(network, set), reader_(network) {
    for (std::size_t b = 0; b < network.blocks.size(); ++b) {
      names_.push_back(network.blocks[b].name);
      if (network.blocks[b].gated) gated_.push_back(b);
    }
    gated_.push_back(network.blocks.size());
  }

  std::unique_ptr<Worker> make_worker() const override { return std::make_unique<ResidualWorker>(plan_, reader_, gated_); }

  std::vector<KernelInfo> kernels() const override {
    std::vector<KernelInfo> infos;
    for (std::size_t b = 0; b < plan_.blocks.size(); ++b) {
      const PlannedBlock& block = plan_.blocks[b];
      for (std::size_t k = 0; k < block.options.size(); ++k) {
        KernelInfo info;
        info.block = names_[b];
        info.option = block.options.size() == option_bits.size() ? option_label(option_bits[k]) : "always";
        for (const ConvStep& step : block.options[k].convs) info.kernels.push_back(step.conv->kernel_name());
        infos.push_back(std::move(info));
      }
    }
    return infos;
  }

 private:
  static std::size_t count_gated(const Network& network) {
    return static_cast<std::size_t>(std::count_if(network.blocks.begin(), network.blocks.end(), [](const Block& b) { return b.gated; }));
  }

  Plan plan_;
  ImageReader reader_;
  std::vector<std::string> names_;
  std::vector<std::size_t> gated_;  // the gated blocks, and where blocks end
};

}  // namespace

std::unique_ptr<Executor> make_executor(const Network& network, const KernelSet& kernels) {
  return std::make_unique<ResidualExecutor>(network, kernels);
}

}  // namespace fracskip
