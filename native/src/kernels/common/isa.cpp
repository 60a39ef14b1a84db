#include "kernels/common/isa.hpp"

#include <stdexcept>
#include <string>

#if defined(FRACSKIP_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(FRACSKIP_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(FRACSKIP_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
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

// What an Arm processor offers besides ARMv8.0.
[[maybe_unused]] static bool arm_has_dotprod() {
#if defined(FRACSKIP_ARM) && defined(__linux__)
  constexpr unsigned long kDotprod = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotprod) != 0;
#elif defined(FRACSKIP_ARM) && defined(__APPLE__)
  int has = 0;
  std::size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}

[[maybe_unused]] static bool arm_has_i8mm() {
#if defined(FRACSKIP_ARM) && defined(__linux__)
  constexpr unsigned long kI8mm = 1ul << 13;  // HWCAP2_I8MM
  return (getauxval(AT_HWCAP2) & kI8mm) != 0;
#elif defined(FRACSKIP_ARM) && defined(__APPLE__)
  int has = 0;
  std::size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has != 0;
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
#if defined(FRACSKIP_ARM)
    case Isa::neon:
      return true;
    case Isa::neon_dotprod:
      return arm_has_dotprod();
    case Isa::neon_i8mm:
      return arm_has_dotprod() && arm_has_i8mm();
#endif
    default:
      return false;
  }
}

Isa best_isa() {
  Isa best = Isa::scalar;
  for (const Isa isa : kIsas) {
    if (isa_supported(isa)) best = isa;
  }
  return best;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::automatic: return "auto";
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512_vnni: return "avx512_vnni";
    case Isa::amx: return "amx";
    case Isa::neon: return "neon";
    case Isa::neon_dotprod: return "neon_dotprod";
    case Isa::neon_i8mm: return "neon_i8mm";
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
#if defined(FRACSKIP_ARM)
  if (isa == Isa::neon) return kNeonKernels;
  if (isa == Isa::neon_dotprod) return kDotprodKernels;
  if (isa == Isa::neon_i8mm) return kI8mmKernels;
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
