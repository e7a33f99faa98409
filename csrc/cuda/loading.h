// From gradients in memory to values (gradients.h, point 1) in registers, and what the kernels add up with.
#pragma once

#include "cuda/device.h"
#include "gradients.h"
#include "values.h"

namespace dataflex::cuda {

// values[i] = the gradient at element at(i) of the block, widened; 0 where at(i) is negative. All loads are under way
// before the first is used.
template <int kCount, class At>
__device__ __forceinline__ void widen(const Gradients& block, float (&values)[kCount], At at) {
  if (block.type == ValueType::kFloat32) {
    const float* floats = static_cast<const float*>(block.values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = at(i) < 0 ? 0.0f : floats[at(i)];
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(block.values);
  uint16_t bits[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) bits[i] = at(i) < 0 ? uint16_t{0} : halves[at(i)];
  if (block.type == ValueType::kBFloat16) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = float_from_bfloat16(bits[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = float_from_float16(bits[i]);
  }
}

// The moments of kCount columns, from a column that may lie outside the block; 0 what the variant does not read.
template <int kCount>
struct ColumnMoments {
  float exp_avg[kCount], exp_avg_sq[kCount];

  // Columns first, first + stride, ...
  __device__ __forceinline__ void load(const Gradients& block, int64_t first, int stride) {
    const bool second = block.adam.variant != AdamVariant::kNone;
    const bool first_too = second && block.adam.variant != AdamVariant::kSecondMoment;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t column = first + i * stride;
      const bool inside = column >= 0 && column < block.count;
      exp_avg[i] = inside && first_too ? block.adam.exp_avg[column] : 0.0f;
      exp_avg_sq[i] = inside && second ? block.adam.exp_avg_sq[column] : 0.0f;
    }
  }
};

// u of a widened gradient g with moments m and v, which raw gradients leave unread.
__device__ __forceinline__ Value value_of(const Adam& adam, float g, const float& m, const float& v) {
  switch (adam.variant) {
    case AdamVariant::kAdamW:
      return normalised<AdamVariant::kAdamW>(adam, g, m, v);
    case AdamVariant::kLess:
      return normalised<AdamVariant::kLess>(adam, g, m, v);
    case AdamVariant::kSecondMoment:
      return normalised<AdamVariant::kSecondMoment>(adam, g, m, v);
    default:
      return {g, is_finite(g)};
  }
}

// *total += value; the order of additions does not matter.
__device__ __forceinline__ void add_to_total(int64_t* total, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(total), static_cast<unsigned long long>(value));
}

}  // namespace dataflex::cuda
