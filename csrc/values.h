// One value on its way to the sums: widen, normalise, put on the grid (gradients.h, points 1 and 2).
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "gradients.h"
#include "platform.h"

namespace dataflex {
namespace {  // a copy for each instruction set that includes it

DATAFLEX_INLINE float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 2^exponent for exponents in [-126, 127].
DATAFLEX_INLINE float power_of_two(int32_t exponent) {
  return float_from_bits(static_cast<uint32_t>(exponent + 127) << 23);
}

DATAFLEX_INLINE float float_from_bfloat16(uint16_t bits) { return float_from_bits(uint32_t{bits} << 16); }

DATAFLEX_INLINE float float_from_float16(uint16_t bits) {
  const uint32_t exponent = bits >> 10 & 31u;
  const uint32_t mantissa = bits & 1023u;
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  const float normal = float_from_bits(wide << 23 | mantissa << 13);
  const float denormal = static_cast<float>(static_cast<int32_t>(mantissa)) * 0x1p-24f;
  const float magnitude = exponent == 0 ? denormal : normal;
  return bits & 0x8000u ? -magnitude : magnitude;
}

DATAFLEX_INLINE bool is_finite(float value) { return fabsf(value) <= FLT_MAX; }

struct Value {
  float u;
  bool finite;  // u and its denominator
};

// u of a gradient g with moments m and v.
template <AdamVariant variant>
DATAFLEX_INLINE Value normalised(const Adam& adam, float g, float m, float v) {
  static_assert(variant != AdamVariant::kNone, "raw gradients are u already");
  constexpr bool less = variant == AdamVariant::kLess;
  const float own = adam.one_minus_beta1 * g;
  const float mean = variant == AdamVariant::kSecondMoment ? own : adam.beta1 * m + own;
  const float square = adam.beta2 * v + (adam.one_minus_beta2 * g) * g;
  const float numerator = variant == AdamVariant::kAdamW ? mean * adam.correction1 : mean;
  const float denominator = less ? sqrtf(square + adam.eps) : sqrtf(square * adam.correction2) + adam.eps;
  const float u = numerator / denominator;
  return {u, is_finite(u) && is_finite(denominator)};
}

// The nearest integer, half to even, of |x| <= 2^23.
DATAFLEX_INLINE int32_t round_to_grid(float x) {
#if defined(__SSE4_1__) || defined(__aarch64__) || defined(__CUDA_ARCH__)
  return static_cast<int32_t>(rintf(x));
#else
  const float shift = copysignf(0x1p23f, x);  // at 2^23 the spacing of floats is 1, so the sum rounds
  return static_cast<int32_t>((x + shift) - shift);
#endif
}

// u * scale on the grid of -limit .. limit, 0 if u is not finite; `saturated` counts the values beyond it.
DATAFLEX_INLINE int32_t on_grid(float u, float scale, float limit, int& saturated) {
  const float x = (is_finite(u) ? u : 0.0f) * scale;
  const float low = x < -limit ? -limit : x;
  const float clamped = low > limit ? limit : low;
  saturated += clamped != x;
  return round_to_grid(clamped);
}

}  // namespace
}  // namespace dataflex
