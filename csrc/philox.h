// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): 128 random bits as a pure
// function of a 128-bit counter and a 64-bit key.
#pragma once

#include <stdint.h>

#include "platform.h"

namespace dataflex {
namespace {  // a copy for each instruction set that includes it

// Four 32-bit words of N counters, least significant word first; arrays, so that the compiler vectorises over N.
template <int N>
struct Words {
  uint32_t at[4][N];
};

// Replaces N counters by their random words.
template <int N>
DATAFLEX_INLINE void philox4x32(Words<N>& x, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < N; ++i) {
      const uint64_t product0 = uint64_t{0xD2511F53u} * x.at[0][i];
      const uint64_t product1 = uint64_t{0xCD9E8D57u} * x.at[2][i];
      x.at[0][i] = static_cast<uint32_t>(product1 >> 32) ^ x.at[1][i] ^ key0;
      x.at[1][i] = static_cast<uint32_t>(product1);
      x.at[2][i] = static_cast<uint32_t>(product0 >> 32) ^ x.at[3][i] ^ key1;
      x.at[3][i] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace
}  // namespace dataflex
