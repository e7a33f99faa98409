// Normal numbers from random words (gaussian.h), to within 1e-6.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/device.h"

namespace dataflex::cuda {

struct NormalPair {
  float even, odd;
};

__device__ __forceinline__ NormalPair normal_pair(uint32_t x, uint32_t y) {
  // u = (x + 0.5) 2^-32 has too few digits in float32 where it is close to 1; its distance to 1 has enough.
  const bool upper = x >= 0x80000000u;
  const float distance = (static_cast<float>(upper ? ~x : x) + 0.5f) * 0x1p-32f;
  const float radius = sqrtf(-2.0f * (upper ? log1pf(-distance) : logf(distance)));
  // The angle, cut to an eighth of a turn around a multiple of a quarter turn, for the same reason.
  const uint32_t quarter = (y + 0x20000000u) >> 30;
  const float half_turns = (static_cast<float>(static_cast<int32_t>(y - (quarter << 30))) + 0.5f) * 0x1p-31f;
  float sine, cosine;
  sincospif(half_turns, &sine, &cosine);
  const bool odd_quarter = quarter & 1u;
  const float x_axis = odd_quarter ? -sine : cosine;
  const float y_axis = odd_quarter ? cosine : sine;
  const float sign = quarter & 2u ? -radius : radius;
  return {sign * x_axis, sign * y_axis};
}

}  // namespace dataflex::cuda
