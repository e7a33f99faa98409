// One chunk of a row on its way to the integer grid: widen, normalise, quantise (see sjlt.h).
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "sjlt.h"

namespace dataflex {
namespace {  // a copy for each instruction set that includes it

inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 2^exponent for exponents in [-126, 127].
inline float power_of_two(int32_t exponent) { return float_from_bits(static_cast<uint32_t>(exponent + 127) << 23); }

inline float float_from_bfloat16(uint16_t bits) { return float_from_bits(uint32_t{bits} << 16); }

inline float float_from_float16(uint16_t bits) {
  const uint32_t exponent = bits >> 10 & 31u;
  const uint32_t mantissa = bits & 1023u;
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  const float normal = float_from_bits(wide << 23 | mantissa << 13);
  const float denormal = static_cast<float>(static_cast<int32_t>(mantissa)) * 0x1p-24f;
  const float magnitude = exponent == 0 ? denormal : normal;
  return bits & 0x8000u ? -magnitude : magnitude;
}

// values[i] = grads[first + i] as float32.
inline void widen(const void* grads, ValueType type, int64_t first, int count, float* values) {
  if (type == ValueType::kFloat32) {
    memcpy(values, static_cast<const float*>(grads) + first, count * sizeof(float));
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(grads) + first;
  if (type == ValueType::kBFloat16) {
    for (int i = 0; i < count; ++i) values[i] = float_from_bfloat16(halves[i]);
  } else {
    for (int i = 0; i < count; ++i) values[i] = float_from_float16(halves[i]);
  }
}

inline bool is_finite(float value) { return fabsf(value) <= FLT_MAX; }

// Replaces g by u in place; `first` is the chunk's place in the block's moments. Returns the number of values that are
// not finite or have a denominator that is not.
inline int normalise(const Adam& adam, int64_t first, int count, float* values) {
  int broken = 0;
  if (adam.variant == AdamVariant::kNone) {
    for (int i = 0; i < count; ++i) broken += !is_finite(values[i]);
    return broken;
  }
  const float* exp_avg = adam.exp_avg + first;
  const float* exp_avg_sq = adam.exp_avg_sq + first;
  const bool adamw = adam.variant == AdamVariant::kAdamW;
  for (int i = 0; i < count; ++i) {
    const float g = values[i];
    const float mean = adam.beta1 * exp_avg[i] + adam.one_minus_beta1 * g;
    const float square = adam.beta2 * exp_avg_sq[i] + (adam.one_minus_beta2 * g) * g;
    const float numerator = adamw ? mean * adam.correction1 : mean;
    const float denominator = adamw ? sqrtf(square * adam.correction2) + adam.eps : sqrtf(square + adam.eps);
    values[i] = numerator / denominator;
    broken += !is_finite(values[i]) | !is_finite(denominator);
  }
  return broken;
}

// The nearest integer, half to even, of |x| <= 2^23: at 2^23 the spacing of floats is 1, so the sum rounds.
inline int32_t round_to_grid(float x) {
  const float shift = copysignf(0x1p23f, x);
  return static_cast<int32_t>((x + shift) - shift);
}

// grid[i] = values[i] * scale on the integer grid, 0 for a value that is not finite. Returns the number of saturations.
inline int quantise(const float* values, float scale, int count, int32_t* grid) {
  int saturated = 0;
  for (int i = 0; i < count; ++i) {
    const float value = is_finite(values[i]) ? values[i] : 0.0f;
    const float x = value * scale;
    const float low = x < -kGridLimit ? -kGridLimit : x;
    const float clamped = low > kGridLimit ? kGridLimit : low;
    saturated += clamped != x;
    grid[i] = round_to_grid(clamped);
  }
  return saturated;
}

}  // namespace
}  // namespace dataflex
