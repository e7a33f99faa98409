// Results are bits, so they may not depend on how the caller's thread rounds, nor on which threads do the work.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace dataflex {

// While it lives, this thread computes as IEEE 754 says: denormals are kept, rounding is to nearest even. A process may
// ask for another arithmetic (torch.set_flush_denormal, a library that was built with -ffast-math), and a thread keeps
// that of the thread which started it.
class IeeeArithmetic {
 public:
  IeeeArithmetic() : before_(read()) { write(before_ & ~kOther); }
  ~IeeeArithmetic() { write(before_); }
  IeeeArithmetic(const IeeeArithmetic&) = delete;
  IeeeArithmetic& operator=(const IeeeArithmetic&) = delete;

 private:
#if defined(__SSE__)
  static constexpr uint64_t kOther = 0x8000 | 0x0040 | 0x6000;  // MXCSR: flush to zero, denormals are zero, rounding
  static uint64_t read() { return _mm_getcsr(); }
  static void write(uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kOther = uint64_t{1} << 24 | uint64_t{3} << 22;  // FPCR: flush to zero, rounding
  static uint64_t read() {
    uint64_t state;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void write(uint64_t state) { __asm__ __volatile__("msr fpcr, %0" : : "r"(state) : "memory"); }
#else
  static constexpr uint64_t kOther = 0;
  static uint64_t read() { return 0; }
  static void write(uint64_t) {}
#endif

  const uint64_t before_;
};

}  // namespace dataflex
