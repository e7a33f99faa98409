// A chunk of one row: the loops over values.h that the compiler vectorises for each instruction set.
#pragma once

#include "gradients.h"
#include "values.h"

namespace dataflex {
namespace {  // a copy for each instruction set that includes it

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float widen(float value) { return value; }
inline float widen(BFloat16 value) { return float_from_bfloat16(value.bits); }
inline float widen(Float16 value) { return float_from_float16(value.bits); }

// Calls take(i, u of parameter first + i) for i < count. Returns the number of values that are not finite. One loop
// from memory to `take`: what `take` computes is done while the units for division and square root are busy.
template <AdamVariant variant, class Stored, class Take>
inline int each_value(const Gradients& block, int64_t row, int64_t first, int count, const Take& take) {
  const Stored* stored = static_cast<const Stored*>(block.values) + row * block.row_stride + first;
  const Adam adam = block.adam;
  int broken = 0;
  if constexpr (variant == AdamVariant::kNone) {
    for (int i = 0; i < count; ++i) {
      const float u = widen(stored[i]);
      take(i, u);
      broken += !is_finite(u);
    }
  } else {
    const float* exp_avg = adam.exp_avg + first;
    const float* exp_avg_sq = adam.exp_avg_sq + first;
    for (int i = 0; i < count; ++i) {
      const Value value = normalised<variant>(adam, widen(stored[i]), exp_avg[i], exp_avg_sq[i]);
      take(i, value.u);
      broken += !value.finite;
    }
  }
  return broken;
}

template <class Stored, class Take>
inline int each_value(const Gradients& block, int64_t row, int64_t first, int count, const Take& take) {
  switch (block.adam.variant) {
    case AdamVariant::kAdamW:
      return each_value<AdamVariant::kAdamW, Stored>(block, row, first, count, take);
    case AdamVariant::kLess:
      return each_value<AdamVariant::kLess, Stored>(block, row, first, count, take);
    case AdamVariant::kSecondMoment:
      return each_value<AdamVariant::kSecondMoment, Stored>(block, row, first, count, take);
    default:
      return each_value<AdamVariant::kNone, Stored>(block, row, first, count, take);
  }
}

template <class Take>
inline int each_value(const Gradients& block, int64_t row, int64_t first, int count, const Take& take) {
  switch (block.type) {
    case ValueType::kBFloat16:
      return each_value<BFloat16>(block, row, first, count, take);
    case ValueType::kFloat16:
      return each_value<Float16>(block, row, first, count, take);
    default:
      return each_value<float>(block, row, first, count, take);
  }
}

// values[i] = u of parameter first + i of the block. Returns the number of values that are not finite.
inline int load_values(const Gradients& block, int64_t row, int64_t first, int count, float* __restrict__ values) {
  return each_value(block, row, first, count, [=](int i, float u) { values[i] = u; });
}

struct GridFacts {
  int broken;     // values that are not finite
  int saturated;  // values beyond the grid
};

// grid[i] = parameter start + i (absolute index) of one row, for i < count; 0 outside the block, of which at least one
// parameter is inside.
inline GridFacts load_grid(const Gradients& block, int64_t row, int64_t start, int count, int32_t exponent, float limit,
                           int32_t* __restrict__ grid) {
  const int64_t begin = start > block.offset ? start : block.offset;
  const int64_t stop = block.offset + block.count;
  const int64_t end = start + count < stop ? start + count : stop;
  const int inside = static_cast<int>(end - begin);
  if (inside < count) memset(grid, 0, sizeof(int32_t) * count);
  int32_t* first = grid + (begin - start);
  const float scale = power_of_two(exponent);
  int saturated = 0;
  const int broken = each_value(block, row, begin - block.offset, inside,
                                [&](int i, float u) { first[i] = on_grid(u, scale, limit, saturated); });
  return {broken, saturated};
}

}  // namespace
}  // namespace dataflex
