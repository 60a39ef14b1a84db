#include "kernels/common/isa.hpp"

#include <stdexcept>
#include <string>

#if defined(FRACSKIP_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fracskip {

// Tiles are 8 KB of a thread's state, which Linux saves only for processes that have asked.
[[maybe_unused]] static bool amx_granted() {
#if defined(FRACSKIP_AMX) && defined(__linux__)
  static const bool granted = [] {
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;  // CPUID leaf 7, EDX
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::automatic:
    case Isa::scalar:
      return true;
#if defined(FRACSKIP_X86)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512_vnni:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    case Isa::amx:
      return amx_granted() && isa_supported(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
#endif
    default:
      return false;
  }
}

Isa best_isa() {
  for (const Isa isa : {Isa::amx, Isa::avx512_vnni, Isa::avx2}) {
    if (isa_supported(isa)) return isa;
  }
  return Isa::scalar;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::automatic: return "auto";
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512_vnni: return "avx512_vnni";
    case Isa::amx: return "amx";
  }
  return "?";
}

Isa isa_named(const std::string& name) {
  if (name == isa_name(Isa::automatic)) return Isa::automatic;
  std::string allowed = "'auto'";
  for (const Isa isa : kIsas) {
    if (name == isa_name(isa)) return isa;
    allowed += std::string(", '") + isa_name(isa) + "'";
  }
  throw std::invalid_argument("unknown instruction set '" + name + "': give one of " + allowed);
}

const KernelSet& kernel_set(Isa isa) {
#if defined(FRACSKIP_X86)
#if defined(FRACSKIP_AMX)
  if (isa == Isa::amx) return kAmxKernels;
#endif
  if (isa == Isa::avx2) return kAvx2Kernels;
  if (isa == Isa::avx512_vnni) return kAvx512Kernels;
#endif
  (void)isa;
  return kScalarKernels;
}

Isa resolve(Isa isa) {
  if (isa == Isa::automatic) return best_isa();
  if (!isa_supported(isa)) {
    throw std::invalid_argument(std::string("this CPU cannot run ") + isa_name(isa) + " code; its best is " + isa_name(best_isa()));
  }
  return isa;
}

}  // namespace fracskip
