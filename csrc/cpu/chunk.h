// A chunk of one row: the loops over values.h that the compiler vectorises for each instruction set.
#pragma once

#include "gradients.h"
#include "values.h"

namespace dataflex {
namespace {  // a copy for each instruction set that includes it

// values[i] = gradient of parameter first + i of the block, as float32.
inline void widen(const Gradients& block, int64_t row, int64_t first, int count, float* values) {
  const int64_t start = row * block.row_stride + first;
  if (block.type == ValueType::kFloat32) {
    memcpy(values, static_cast<const float*>(block.values) + start, count * sizeof(float));
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(block.values) + start;
  if (block.type == ValueType::kBFloat16) {
    for (int i = 0; i < count; ++i) values[i] = float_from_bfloat16(halves[i]);
  } else {
    for (int i = 0; i < count; ++i) values[i] = float_from_float16(halves[i]);
  }
}

template <AdamVariant variant>
int normalise(const Adam& adam, int64_t first, int count, float* values) {
  const float* exp_avg = adam.exp_avg + first;
  const float* exp_avg_sq = adam.exp_avg_sq + first;
  int broken = 0;
  for (int i = 0; i < count; ++i) {
    const Value value = normalised<variant>(adam, values[i], exp_avg[i], exp_avg_sq[i]);
    values[i] = value.u;
    broken += !value.finite;
  }
  return broken;
}

// values[i] = u of parameter first + i. Returns the number of values that are not finite.
inline int load_values(const Gradients& block, int64_t row, int64_t first, int count, float* values) {
  widen(block, row, first, count, values);
  switch (block.adam.variant) {
    case AdamVariant::kAdamW:
      return normalise<AdamVariant::kAdamW>(block.adam, first, count, values);
    case AdamVariant::kLess:
      return normalise<AdamVariant::kLess>(block.adam, first, count, values);
    default:
      break;
  }
  int broken = 0;
  for (int i = 0; i < count; ++i) broken += !is_finite(values[i]);
  return broken;
}

// grid[i] = values[i] on the grid. Returns the number of saturations.
inline int quantise(const float* values, int32_t exponent, float limit, int count, int32_t* grid) {
  const float scale = power_of_two(exponent);
  int saturated = 0;
  for (int i = 0; i < count; ++i) grid[i] = on_grid(values[i], scale, limit, saturated);
  return saturated;
}

struct Flaws {
  int broken;     // values that are not finite
  int saturated;  // values beyond the grid
};

// grid[i] = parameter start + i (absolute index) of one row, for i < count; 0 outside the block. `values` is scratch of
// `count` floats.
inline Flaws load_grid(const Gradients& block, int64_t row, int64_t start, int count, int32_t exponent, float limit,
                       float* values, int32_t* grid) {
  const int64_t begin = start > block.offset ? start : block.offset;
  const int64_t stop = block.offset + block.count;
  const int64_t end = start + count < stop ? start + count : stop;
  const int inside = static_cast<int>(end - begin);
  if (inside < count) memset(grid, 0, sizeof(int32_t) * count);
  const int broken = load_values(block, row, begin - block.offset, inside, values);
  return {broken, quantise(values, exponent, limit, inside, grid + (begin - start))};
}

}  // namespace
}  // namespace dataflex
