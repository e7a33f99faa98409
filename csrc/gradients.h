// What every projection reads and the fixed-point kinds write: b rows of gradients of consecutive parameters, the Adam
// moments that normalise them, and integer totals.
//
// All float arithmetic is IEEE binary32, round to nearest even, denormals kept, one rounding an operation. Constants
// (1 - beta, reciprocals of the bias corrections) are computed in binary64 and rounded once.
//
// 1. Value of parameter d in one row. g: the gradient, widened to float32 (exact).
//      raw    u = g
//      adamw  m' = beta1 * m + one_minus_beta1 * g
//             v' = beta2 * v + (one_minus_beta2 * g) * g
//             u  = (m' * correction1) / (sqrt(v' * correction2) + eps)
//      less   m', v' as above;  u = m' / sqrt(v' + eps)
//      second_moment  v' as above;  u = (one_minus_beta1 * g) / (sqrt(v' * correction2) + eps)
//             (adamw with beta1 = 0 and correction1 = 1, to the bit where m is finite)
//    A row is not finite if any u, or any denominator, is not; such a u counts as 0 in the sums.
// 2. Grid of the kinds that add integers, with the kind's limit and the row's exponent:
//      q = round_to_nearest_even(clamp(u * 2^exponent, -limit, limit))
//    A value that the clamp changes is counted as saturated.
// 3. totals[row][output] += sum over d of P'[output][d] * q in 64-bit integers, where P' holds 0 and +-1. The order
// does
//    not matter, which is why batch size, block split, threads, instruction set and device do not either.
// The caller makes the feature: float32(double(total) * factor), factor = scale of P * 2^-exponent in binary64.
#pragma once

#include <stdint.h>

namespace dataflex {

enum class ValueType { kFloat32, kBFloat16, kFloat16 };
enum class AdamVariant { kNone, kAdamW, kLess, kSecondMoment };

struct Adam {
  AdamVariant variant;
  const float* exp_avg;     // (count), of the block; second_moment leaves it unread
  const float* exp_avg_sq;  // (count)
  float beta1, one_minus_beta1, beta2, one_minus_beta2, correction1, correction2, eps;
};

// A block of the gradients of `rows` samples: parameters offset .. offset + count.
struct Gradients {
  const void* values;  // (rows, count), a row's values consecutive
  ValueType type;
  int64_t rows;
  int64_t row_stride;  // in values
  int64_t count;
  int64_t offset;  // parameter index of the block's first column
  Adam adam;
};

// Integer sums of a kind with a grid, each row added to.
struct Totals {
  int64_t* sums;        // (rows, dim)
  uint8_t* not_finite;  // (rows), set to 1 where a value of the row is not finite, else left alone
  int64_t* saturated;   // (rows), values beyond the grid
};

}  // namespace dataflex
