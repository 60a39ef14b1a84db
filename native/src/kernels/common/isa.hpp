// Which instruction sets this processor offers, and their kernels.
#pragma once

#include <string>

#include "kernels/common/kernels.hpp"

namespace fracskip {

// Instruction sets. `automatic` takes the best of this CPU.
enum class Isa { automatic, scalar, avx2, avx512_vnni, amx, neon, neon_dotprod, neon_i8mm };

// All but `automatic`; of a processor's, each is able to run what stands before it.
inline constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512_vnni, Isa::amx, Isa::neon, Isa::neon_dotprod, Isa::neon_i8mm};

// AMX is supported where the system grants it to this process, which is asked for here.
bool isa_supported(Isa isa);
Isa best_isa();
const char* isa_name(Isa isa);
Isa isa_named(const std::string& name);  // or 'auto'; throws std::invalid_argument, which lists them
const KernelSet& kernel_set(Isa isa);  // of a supported one

// The set itself, or the best one for `automatic`. Throws std::invalid_argument if the CPU lacks it.
Isa resolve(Isa isa);

// What a thread's kernels need while it runs them.
class KernelState {
 public:
  explicit KernelState(const KernelSet& kernels) : leave_(kernels.leave) {
    if (kernels.enter) kernels.enter();
  }
  ~KernelState() {
    if (leave_) leave_();
  }
  KernelState(const KernelState&) = delete;
  KernelState& operator=(const KernelState&) = delete;

 private:
  void (*leave_)();
};

}  // namespace fracskip
