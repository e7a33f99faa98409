#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace dataflex {
namespace {

constexpr Isa kBestFirst[] = {Isa::kAvx512, Isa::kAvx2, Isa::kPortable};

bool is_supported(Isa isa) {
#ifdef DATAFLEX_X86
  __builtin_cpu_init();
  if (isa == Isa::kAvx512) return __builtin_cpu_supports("avx512f") != 0;
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") != 0;
#endif
  return isa == Isa::kPortable;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
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
