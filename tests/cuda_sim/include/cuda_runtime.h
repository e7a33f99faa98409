// The part of CUDA that csrc/cuda uses, for a C++ compiler: kernels become functions that the emulator (emulator.h)
// runs, one fiber a thread. Found before the real header of the same name.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

// The thread that runs now.
extern dim3 threadIdx, blockIdx;

namespace emulator {

enum class Collective { kShuffle, kReduceAdd, kMultiplySigned, kMultiplyUnsigned };

constexpr int kWordsIn = 10, kWordsOut = 4;

void launch(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);
void synchronise_block(int line);
// What all lanes of a warp do together: each gives words and gets words.
void synchronise_warp(Collective kind, int line, const uint32_t (&in)[kWordsIn], uint32_t (&out)[kWordsOut]);
void* shared_memory();

}  // namespace emulator

inline void __syncthreads(int line = __builtin_LINE()) { emulator::synchronise_block(line); }

inline uint32_t __shfl_sync(unsigned, uint32_t value, int source, int line = __builtin_LINE()) {
  uint32_t out[emulator::kWordsOut];
  emulator::synchronise_warp(emulator::Collective::kShuffle, line, {value, static_cast<uint32_t>(source)}, out);
  return out[0];
}

inline int32_t __shfl_sync(unsigned mask, int32_t value, int source, int line = __builtin_LINE()) {
  return static_cast<int32_t>(__shfl_sync(mask, static_cast<uint32_t>(value), source, line));
}

inline int32_t __reduce_add_sync(unsigned, int32_t value, int line = __builtin_LINE()) {
  uint32_t out[emulator::kWordsOut];
  emulator::synchronise_warp(emulator::Collective::kReduceAdd, line, {static_cast<uint32_t>(value)}, out);
  return static_cast<int32_t>(out[0]);
}

// Relaxed, as on the device: atomics order nothing around them.
template <class T>
T atomicAdd(T* address, T value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(sin(M_PI * double{x}));
  *cosine = static_cast<float>(cos(M_PI * double{x}));
}

// Host side: one device with few multiprocessors, so that small jobs are split over several blocks.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* processors = getenv("EMULATED_MULTIPROCESSORS");
  if (attribute == cudaDevAttrMultiProcessorCount) *value = processors == nullptr ? 2 : atoi(processors);
  if (attribute == cudaDevAttrComputeCapabilityMajor) *value = 8;
  if (attribute == cudaDevAttrComputeCapabilityMinor) *value = 0;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  constexpr int kMostOfSm80 = 163 << 10;
  return bytes <= kMostOfSm80 ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  emulator::launch(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
