// The tile instructions that rademacher_amx.cpp uses, in plain C++, for processors without them: included before that
// file, with the meaning that Intel's manual gives (8-bit products of 4 bytes a dword, 32-bit sums that wrap around).
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace amx_emulation {

struct Tile {
  uint8_t bytes[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline void check(bool condition) {
  if (!condition) __builtin_trap();
}

inline void configure(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  check(bytes[0] == 1 && bytes[1] == 0);
  for (int tile = 0; tile < 8; ++tile) {
    check(bytes[16 + 2 * tile] == 64 && bytes[17 + 2 * tile] == 0 && bytes[48 + tile] == 16);
    memset(&tiles[tile], 0xA5, sizeof(Tile));
  }
  configured = true;
}

inline void release() { configured = false; }

inline void zero(int tile) {
  check(configured);
  memset(&tiles[tile], 0, sizeof(Tile));
}

inline void load(int tile, const void* base, size_t stride) {
  check(configured);
  for (int row = 0; row < 16; ++row) {
    memcpy(tiles[tile].bytes[row], static_cast<const uint8_t*>(base) + row * stride, 64);
  }
}

inline void store(int tile, void* base, size_t stride) {
  check(configured);
  for (int row = 0; row < 16; ++row) memcpy(static_cast<uint8_t*>(base) + row * stride, tiles[tile].bytes[row], 64);
}

// c[m][n] += sum over k, i of a[m][4 k + i] * b[k][4 n + i], b signed, a signed or not.
template <bool kSigned>
inline void multiply(int c, int a, int b) {
  check(configured);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      uint32_t sum;
      memcpy(&sum, tiles[c].bytes[m] + 4 * n, sizeof sum);
      for (int k = 0; k < 16; ++k) {
        for (int i = 0; i < 4; ++i) {
          const uint8_t left = tiles[a].bytes[m][4 * k + i];
          const int32_t wide = kSigned ? static_cast<int8_t>(left) : static_cast<int32_t>(left);
          sum += static_cast<uint32_t>(wide * static_cast<int8_t>(tiles[b].bytes[k][4 * n + i]));
        }
      }
      memcpy(tiles[c].bytes[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace amx_emulation

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbusd
#define _tile_loadconfig amx_emulation::configure
#define _tile_release amx_emulation::release
#define _tile_zero amx_emulation::zero
#define _tile_loadd amx_emulation::load
#define _tile_stored amx_emulation::store
#define _tile_dpbssd amx_emulation::multiply<true>
#define _tile_dpbusd amx_emulation::multiply<false>
