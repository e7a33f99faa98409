// Which instruction sets this processor and its operating system offer, and which one the kernels use.
#pragma once

namespace dataflex {

enum class Isa { kPortable, kAvx2, kAvx512 };

// The best that is supported, or the one that the environment variable DATAFLEX_ISA names. Throws
// std::invalid_argument if that one is not supported here.
Isa current_isa();

// "portable", "avx2" or "avx512".
const char* isa_name(Isa isa);

}  // namespace dataflex
