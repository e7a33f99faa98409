// The emulation's counterpart of csrc/cuda/device.h: the same functions without PTX.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace dataflex::cuda {

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::shared_memory());
}

inline void set_flag(uint8_t* flag) { __atomic_store_n(flag, uint8_t{1}, __ATOMIC_RELAXED); }

inline void multiply_add(emulator::Collective kind, int line, int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                         uint32_t b1) {
  uint32_t in[emulator::kWordsIn] = {a[0], a[1], a[2], a[3], b0, b1}, out[emulator::kWordsOut];
  for (int i = 0; i < 4; ++i) in[6 + i] = static_cast<uint32_t>(sums[i]);
  emulator::synchronise_warp(kind, line, in, out);
  for (int i = 0; i < 4; ++i) sums[i] = static_cast<int32_t>(out[i]);
}

inline void multiply_add_signed(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                int line = __builtin_LINE()) {
  multiply_add(emulator::Collective::kMultiplySigned, line, sums, a, b0, b1);
}

inline void multiply_add_unsigned(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                  int line = __builtin_LINE()) {
  multiply_add(emulator::Collective::kMultiplyUnsigned, line, sums, a, b0, b1);
}

}  // namespace dataflex::cuda
