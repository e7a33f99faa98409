// Which instruction sets this processor and its operating system offer, and which one the kernels use.
#pragma once

namespace dataflex {

// kAmx is AVX-512 with 8-bit matrix tiles; kernels without a use for tiles take kAvx512's code.
enum class Isa { kPortable, kAvx2, kAvx512, kAmx };

// The best that is supported, or the one that the environment variable DATAFLEX_ISA names. Throws
// std::invalid_argument if that one is not supported here.
Isa current_isa();

// "portable", "avx2", "avx512" or "amx".
const char* isa_name(Isa isa);

}  // namespace dataflex
