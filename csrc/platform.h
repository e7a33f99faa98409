// Functions that run on both sides: nvcc compiles them for host and device, every other compiler as plain C++.
#pragma once

#ifdef __CUDACC__
#define DATAFLEX_INLINE __host__ __device__ __forceinline__
#else
#define DATAFLEX_INLINE inline
#endif
