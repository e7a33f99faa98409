// `gaussian`: dense projection with independent normal entries, P = P' / sqrt(dim), P' ~ N(0, 1), in floating point.
//
// Values u are those of gradients.h, point 1 (no grid). The entries of output o and parameters d = 4 D .. 4 D + 3:
//
//   words = philox4x32(counter = {D low, D high, o, kGaussianDomain}, key = {seed low, seed high})
//   (x, y) = (words[0], words[1]) for d = 4 D, 4 D + 1;  (words[2], words[3]) for d = 4 D + 2, 4 D + 3
//   radius = sqrt(-2 ln((x + 0.5) 2^-32)),  angle = 2 pi (y + 0.5) 2^-32          (Box and Muller, 1958)
//   P'[o][d] = radius * cos(angle) for even d, radius * sin(angle) for odd d
//
// Implementations compute an entry to within 1e-6 (absolute) of the exact value and may add in float32 within runs of
// at most 4096 parameters, whose sums are added in binary64: features agree to 1e-5 of their norm, not bit by bit.
#pragma once

#include "gradients.h"

namespace dataflex {

constexpr uint32_t kGaussianDomain = 0x67617573u;  // "gaus"

struct GaussianJob {
  Gradients block;
  uint64_t seed;
  int32_t dim;  // any number of outputs
  int threads;  // at most this many, the caller's among them
};

struct GaussianTotals {
  double* sums;         // (rows, dim), added to
  uint8_t* not_finite;  // (rows), set to 1 where a value of the row is not finite, else left alone
};

void gaussian_accumulate(const GaussianJob& job, const GaussianTotals& totals);

}  // namespace dataflex
