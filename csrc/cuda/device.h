// What the kernels need beyond CUDA C++, in one place: the emulation on the CPU (tests/cuda_sim) has its own file of
// this name, which its include path finds first.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace dataflex::cuda {

// The dynamic shared memory of the thread block.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// *flag = 1, where other threads may write the same.
__device__ __forceinline__ void set_flag(uint8_t* flag) { *static_cast<volatile uint8_t*>(flag) = 1; }

// sums += a b on the tensor cores, for one warp: a is 16 x 32 unsigned bytes by rows, b is 32 x 8 bytes by columns,
// sums is 16 x 8. With lane = 4 g + t, in the order of the registers' bytes (PTX ISA, mma.m16n8k32):
//   a[0], a[1]   row g, row g + 8; columns 4 t .. 4 t + 3        a[2], a[3]   the same rows, columns 16 + 4 t ..
//   b0, b1       column g; rows 4 t .. 4 t + 3, 16 + 4 t ..
//   sums[0], [1] row g, columns 2 t, 2 t + 1                     sums[2], [3] row g + 8
__device__ __forceinline__ void multiply_add_signed(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same with unsigned bytes in b.
__device__ __forceinline__ void multiply_add_unsigned(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                                      uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace dataflex::cuda
