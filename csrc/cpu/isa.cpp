#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(DATAFLEX_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dataflex {
namespace {

constexpr Isa kBestFirst[] = {Isa::kAmx, Isa::kAvx512, Isa::kAvx2, Isa::kPortable};

#ifdef DATAFLEX_X86

// Whether the processor has 8-bit tiles and Linux lets this process use their 8 KiB of state, which it must be asked
// for once (ARCH_REQ_XCOMP_PERM, since Linux 5.16).
bool has_amx() {
#ifdef __linux__
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;
  if ((edx & kTiles) == 0 || (edx & kInt8) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool is_supported_x86(Isa isa) {
  __builtin_cpu_init();
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  if (isa == Isa::kAvx512) return avx512;
  static const bool amx = avx512 && has_amx();
  return amx;
}

#endif

bool is_supported(Isa isa) {
#ifdef DATAFLEX_X86
  if (isa != Isa::kPortable) return is_supported_x86(isa);
#endif
  return isa == Isa::kPortable;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

Isa current_isa() {
  const char* wanted = std::getenv("DATAFLEX_ISA");
  std::string known;
  for (const Isa isa : kBestFirst) {
    if (!is_supported(isa)) continue;
    if (wanted == nullptr || *wanted == 0 || isa_name(isa) == std::string(wanted)) return isa;
    known += known.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  }
  throw std::invalid_argument("DATAFLEX_ISA is '" + std::string(wanted) + "'; this processor has: " + known);
}

}  // namespace dataflex
