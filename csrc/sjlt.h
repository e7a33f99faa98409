// `sjlt`: block-permutation sparse Johnson-Lindenstrauss projection in exact fixed point.
//
// This header and gradients.h are the specification; every implementation (CPU, CUDA, the torch reference) gives the
// same bits. The grid's limit is 2^23. The matrix:
//
// group = d / 16, lane = d % 16. Repetitions j = 0 .. sparsity-1 own dim / sparsity consecutive outputs each, cut into
// segments of 16. One Philox call serves two repetitions:
//   words = philox4x32(counter = {group low, group high, j / 2, kSjltDomain}, key = {seed low, seed high})
//   (place, shape) = (words[0], words[1]) for even j, (words[2], words[3]) for odd j
//   segment    = (place * segments) >> 32                       segments = dim / sparsity / 16
//   negative   = bit `lane` of shape (bits 0-15)
//   shift      = bits 16-19 of shape
//   multiplier = 1 + ((bits 20-31 of shape) * 15 >> 12)
//   position   = (multiplier (x) lane) xor shift                (x): product in GF(16) = GF(2)[x] / (x^4 + x + 1)
//   output     = j * (dim / sparsity) + 16 * segment + position
//   totals[row][output] += negative ? -q : q
// Two lanes of a group land on every ordered pair of distinct positions with (almost) equal chance, and never on the
// same one. P = P' / sqrt(sparsity).
#pragma once

#include "gradients.h"

namespace dataflex {

constexpr int kLanes = 16;
constexpr float kSjltLimit = 8388608.0f;       // 2^23: float32 holds every integer of the grid
constexpr uint32_t kSjltDomain = 0x736A6C74u;  // "sjlt": other kinds of projection draw from other streams

struct SjltJob {
  Gradients block;
  const int32_t* exponents;  // (rows), in [-126, 127]
  uint64_t seed;
  int32_t dim;       // a multiple of kLanes * sparsity
  int32_t sparsity;  // at least 1
  int threads;       // at most this many, the caller's among them
};

void sjlt_accumulate(const SjltJob& job, const Totals& totals);

}  // namespace dataflex
