// The entries of gaussian.h: from random words to pairs of normal numbers, in float32.
//
// Each polynomial interpolates its function at the Chebyshev nodes of its interval (solved in binary64 and rounded),
// which is within a small factor of the best possible; the largest errors are stated beside it. Entries are within
// 1e-6 of exact ones (6e-7 over 10 million entries): the angle is reduced in integers, and the logarithm is taken of
// the complement where the uniform number is near one, because float32 could not hold the difference.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "gaussian.h"
#include "philox_lanes.h"
#include "values.h"

namespace dataflex {
namespace {  // a copy for each instruction set that includes it

// One rounding where the processor has the instruction, else two: entries are not specified bit by bit.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// c0 + c1 x + c2 x^2 ... by Horner's rule; a loop here would keep the loop over the lanes from being vectorised.
inline float polynomial(float, float c0) { return c0; }
template <class... Rest>
inline float polynomial(float x, float c0, Rest... rest) {
  return multiply_add(polynomial(x, rest...), x, c0);
}

// ln(1 + z) = z + z^2 P(z) for |z| <= 1/3, to 2.4e-8.
inline float log_one_plus(float z) {
  const float p = polynomial(z, -0.499999856f, 0.333333202f, -0.250041462f, 0.200037803f, -0.164830175f, 0.141183099f,
                             -0.150407637f, 0.13425749f);
  return multiply_add(z * z, p, z);
}

// sqrt(-2 ln((x + 0.5) 2^-32)).
inline float radius_of(uint32_t x) {
  const bool near_one = x >= 0xC0000000u;
  const float part = (static_cast<float>(near_one ? ~x : x) + 0.5f) * 0x1p-32f;  // the number, or one minus it
  uint32_t bits;
  memcpy(&bits, &part, sizeof bits);
  // part = 2^exponent (1 + z) with 1 + z in [2/3, 4/3).
  const int32_t exponent = (static_cast<int32_t>(bits) - 0x3F2AAAAB) >> 23;
  const float z = float_from_bits(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  const float log = log_one_plus(near_one ? -part : z);
  const float whole = near_one ? 0.0f : static_cast<float>(exponent);
  return sqrtf(-2.0f * multiply_add(whole, 0.693147181f, log));
}

struct SineCosine {
  float sine, cosine;
};

// Of the angle 2 pi (y + 0.5) 2^-32: the nearest quarter turn, and what is left in turns, |left| <= 1/8.
inline SineCosine sine_cosine(uint32_t y) {
  const uint32_t quarter = (y + 0x20000000u) >> 30;
  const float left = (static_cast<float>(static_cast<int32_t>(y - (quarter << 30))) + 0.5f) * 0x1p-32f;
  const float square = left * left;
  const float s = left * polynomial(square, 6.28318529f, -41.3416626f, 81.5925429f, -75.4016127f);  // to 2.5e-9
  const float c = polynomial(square, 1.0f, -19.7392087f, 64.9393161f, -85.4428447f, 59.220169f);    // to 5e-11
  const float sine = quarter & 1u ? c : s, cosine = quarter & 1u ? s : c;
  return {quarter & 2u ? -sine : sine, (quarter + 1u) & 2u ? -cosine : cosine};
}

// entries[m][lane] of the parameters 4 column + m and the outputs first + lane.
inline void draw_entries(const GaussianJob& job, int64_t column, int64_t first, float (&entries)[4][kPhiloxLanes]) {
  Words<kPhiloxLanes> words;
  for (int lane = 0; lane < kPhiloxLanes; ++lane) {
    words.at[0][lane] = static_cast<uint32_t>(static_cast<uint64_t>(column));
    words.at[1][lane] = static_cast<uint32_t>(static_cast<uint64_t>(column) >> 32);
    words.at[2][lane] = static_cast<uint32_t>(first) + static_cast<uint32_t>(lane);
    words.at[3][lane] = kGaussianDomain;
  }
  philox_lanes(words, static_cast<uint32_t>(job.seed), static_cast<uint32_t>(job.seed >> 32));
  for (int pair = 0; pair < 2; ++pair) {
    for (int lane = 0; lane < kPhiloxLanes; ++lane) {
      const float radius = radius_of(words.at[2 * pair][lane]);
      const SineCosine angle = sine_cosine(words.at[2 * pair + 1][lane]);
      entries[2 * pair][lane] = radius * angle.cosine;
      entries[2 * pair + 1][lane] = radius * angle.sine;
    }
  }
}

}  // namespace
}  // namespace dataflex
