// Block-permutation sparse Johnson-Lindenstrauss projection, fused with Adam normalisation, in exact fixed point.
//
// This header is the specification; every implementation (CPU, CUDA, the torch reference) gives the same bits.
// All float arithmetic is IEEE binary32, round to nearest even, denormals kept, one rounding an operation. Constants
// (1 - beta, reciprocals of the bias corrections) are computed in binary64 and rounded once.
//
// 1. Value of parameter d in one row. g: the gradient, widened to float32 (exact).
//      raw    u = g
//      adamw  m' = beta1 * m + one_minus_beta1 * g
//             v' = beta2 * v + (one_minus_beta2 * g) * g
//             u  = (m' * correction1) / (sqrt(v' * correction2) + eps)
//      less   m', v' as above;  u = m' / sqrt(v' + eps)
//    A row is not finite if any u, or any denominator, is not.
// 2. Grid. q = round_to_nearest_even(clamp(u * 2^exponent, -kGridLimit, kGridLimit)), exponent of the row;
//    a value that the clamp changes is counted as saturated.
// 3. Matrix. group = d / 16, lane = d % 16. Repetitions j = 0 .. sparsity-1 own dim / sparsity consecutive outputs
//    each, cut into segments of 16. One Philox call serves two repetitions:
//      words = philox4x32(counter = {group low, group high, j / 2, kDomain}, key = {seed low, seed high})
//      (place, shape) = (words[0], words[1]) for even j, (words[2], words[3]) for odd j
//      segment    = (place * segments) >> 32                       segments = dim / sparsity / 16
//      negative   = bit `lane` of shape (bits 0-15)
//      shift      = bits 16-19 of shape
//      multiplier = 1 + ((bits 20-31 of shape) * 15 >> 12)
//      position   = (multiplier (x) lane) xor shift                (x): product in GF(16) = GF(2)[x] / (x^4 + x + 1)
//      output     = j * (dim / sparsity) + 16 * segment + position
//    Two lanes of a group land on every ordered pair of distinct positions with (almost) equal chance, and never on
//    the same one.
// 4. totals[row][output] += negative ? -q : q, in 64-bit integers: their order does not matter, which is why batch
//    size, block split, threads and device do not either.
// The caller makes the feature: float32(double(total) * factor), factor = (1.0 / sqrt(double(sparsity))) * 2^-exponent.
#pragma once

#include <cstdint>

namespace dataflex {

constexpr int kLanes = 16;
constexpr float kGridLimit = 8388608.0f;   // 2^23: float32 holds every integer of the grid
constexpr uint32_t kDomain = 0x736A6C74u;  // "sjlt": other kinds of projection draw from other streams

enum class ValueType { kFloat32, kBFloat16, kFloat16 };
enum class AdamVariant { kNone, kAdamW, kLess };

struct Adam {
  AdamVariant variant;
  const float* exp_avg;     // (count), of the block
  const float* exp_avg_sq;  // (count)
  float beta1, one_minus_beta1, beta2, one_minus_beta2, correction1, correction2, eps;
};

struct SjltJob {
  const void* grads;  // (rows, count), a row's values consecutive
  ValueType type;
  int64_t rows;
  int64_t row_stride;  // in values
  int64_t count;
  uint64_t offset;  // parameter index of the block's first column
  Adam adam;
  const int32_t* exponents;  // (rows), in [-126, 127]
  uint64_t seed;
  int32_t dim;       // a multiple of kLanes * sparsity
  int32_t sparsity;  // at least 1
  int threads;       // at most this many, the caller's among them
};

struct SjltResult {
  int64_t* totals;      // (rows, dim), added to
  uint8_t* not_finite;  // (rows), set to 1 where a value of the row is not finite, else left alone
  int64_t* saturated;   // (rows), added to
};

void sjlt_accumulate(const SjltJob& job, const SjltResult& result);

// Name of the implementation that runs here: "avx512", "avx2" or "portable". Throws std::invalid_argument if the
// environment variable DATAFLEX_ISA names one that does not.
const char* sjlt_isa();

}  // namespace dataflex
