// One implementation of dots.h: a file that includes this one names it with DATAFLEX_DOTS and is compiled for one
// instruction set. As in sjlt_run.inl, everything else has internal linkage and uses no inline function of the C++
// library.
//
// A piece is normalised for up to kDotsRows rows, whose values stay in the cache. Then each few directions are
// multiplied with all of these rows, some vectors of the 32 lanes at a time: their sums stay in registers until the
// piece ends. Products are exact, so fused or not makes no difference.
#include <stdint.h>
#include <string.h>

#include "chunk.h"
#include "dots_run.h"
#include "intrinsics.h"

namespace dataflex {
namespace {

#if defined(__AVX512F__)

using Doubles = __m512d;
constexpr int kDirectionsAtOnce = 4;
inline Doubles load(const double* source) { return _mm512_load_pd(source); }
inline Doubles widened(const float* source) { return _mm512_cvtps_pd(_mm256_loadu_ps(source)); }
inline void store(double* target, Doubles x) { _mm512_store_pd(target, x); }
inline Doubles add_product(Doubles sum, Doubles a, Doubles b) { return _mm512_fmadd_pd(a, b, sum); }

#elif defined(__AVX2__)

using Doubles = __m256d;
constexpr int kDirectionsAtOnce = 2;
inline Doubles load(const double* source) { return _mm256_load_pd(source); }
inline Doubles widened(const float* source) { return _mm256_cvtps_pd(_mm_loadu_ps(source)); }
inline void store(double* target, Doubles x) { _mm256_store_pd(target, x); }
inline Doubles add_product(Doubles sum, Doubles a, Doubles b) { return _mm256_fmadd_pd(a, b, sum); }

#else

typedef double Doubles __attribute__((vector_size(16)));  // what every 64-bit processor has
constexpr int kDirectionsAtOnce = 2;
inline Doubles load(const double* source) { return *reinterpret_cast<const Doubles*>(source); }
inline Doubles widened(const float* source) {
  return Doubles{static_cast<double>(source[0]), static_cast<double>(source[1])};
}
inline void store(double* target, Doubles x) { *reinterpret_cast<Doubles*>(target) = x; }
inline Doubles add_product(Doubles sum, Doubles a, Doubles b) { return sum + a * b; }

#endif

constexpr int kWidth = sizeof(Doubles) / sizeof(double);
static_assert(kDotsLanes % (2 * kWidth) == 0, "a step is made of pairs of vectors");

// A piece of up to kDotsRows rows and of some directions.
struct Scratch {
  alignas(64) float values[kDotsRows][kPiece];  // u, 0 where it is not finite and from `count` to a whole step
  alignas(64) float tails[kDirectionsAtOnce][kDotsLanes];  // the directions' last step, if it is cut: 0 from `count` on
  alignas(64) double lanes[kDotsRows][kDirectionsAtOnce + 1][kDotsLanes];
  const float* directions[kDirectionsAtOnce];
  int rows, count;
};

void load_piece(const Gradients& block, int64_t first_row, int64_t first, Scratch& scratch, uint8_t* broken) {
  for (int row = 0; row < scratch.rows; ++row) {
    float* values = scratch.values[row];
    broken[row] = load_values(block, first_row + row, first, scratch.count, values) != 0;
    for (int i = 0; broken[row] && i < scratch.count; ++i) values[i] = is_finite(values[i]) ? values[i] : 0.0f;
    for (int i = scratch.count; i % kDotsLanes != 0; ++i) values[i] = 0;
  }
}

// The lanes of kRows rows, from `row` on, with kDirections directions and, after them, if kSquares, with themselves.
template <int kRows, int kDirections, bool kSquares>
inline void multiply(int row, Scratch& scratch) {
  constexpr int kSums = kDirections + kSquares;
  constexpr int kVectors = kRows * kSums <= 4 ? 4 : kRows * kSums <= 8 ? 2 : 1;  // enough sums to keep the units busy
  const int whole = scratch.count / kDotsLanes * kDotsLanes;
  for (int lane = 0; lane < kDotsLanes; lane += kVectors * kWidth) {
    Doubles sums[kRows][kSums][kVectors] = {};
    // Columns column + lane ..; those of direction j are at `factors(j)`.
    const auto add_step = [&](int column, const auto& factors) {
      for (int v = 0; v < kVectors; ++v) {
        Doubles factor[kSums];
        for (int j = 0; j < kDirections; ++j) factor[j] = widened(factors(j) + lane + v * kWidth);
        for (int r = 0; r < kRows; ++r) {
          const Doubles u = widened(scratch.values[row + r] + column + lane + v * kWidth);
          for (int j = 0; j < kDirections; ++j) sums[r][j][v] = add_product(sums[r][j][v], u, factor[j]);
          if (kSquares) sums[r][kSums - 1][v] = add_product(sums[r][kSums - 1][v], u, u);
        }
      }
    };
    for (int i = 0; i < whole; i += kDotsLanes) add_step(i, [&](int j) { return scratch.directions[j] + i; });
    if (whole < scratch.count) add_step(whole, [&](int j) { return scratch.tails[j]; });
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kSums; ++j) {
        for (int v = 0; v < kVectors; ++v) store(scratch.lanes[row + r][j] + lane + v * kWidth, sums[r][j][v]);
      }
    }
  }
}

// The sum of kDotsLanes lanes, which it overwrites.
inline double tree_sum(double* lanes) {
  for (int half = kDotsLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// The sums of all rows with kDirections directions from `direction` on, and, if kSquares, with themselves.
template <int kDirections, bool kSquares>
inline void sum_directions(const DotsJob& job, int64_t direction, int64_t first, Scratch& scratch, double* partial) {
  const int whole = scratch.count / kDotsLanes * kDotsLanes;
  for (int j = 0; j < kDirections; ++j) {
    const float* q = job.directions + (direction + j) * job.direction_stride + first;
    scratch.directions[j] = q;
    for (int i = 0; i < kDotsLanes; ++i) scratch.tails[j][i] = whole + i < scratch.count ? q[whole + i] : 0.0f;
  }
  if (scratch.rows == kDotsRows) {
    multiply<kDotsRows, kDirections, kSquares>(0, scratch);
  } else {
    for (int row = 0; row < scratch.rows; ++row) multiply<1, kDirections, kSquares>(row, scratch);
  }
  for (int row = 0; row < scratch.rows; ++row) {
    double* sums = partial + row * (1 + int64_t{job.number});
    for (int j = 0; j < kDirections; ++j) sums[1 + direction + j] = tree_sum(scratch.lanes[row][j]);
    if (kSquares) sums[0] = tree_sum(scratch.lanes[row][kDirections]);
  }
}

void sum_piece(const DotsJob& job, Range rows, int64_t piece, void* memory, double* partial, uint8_t* broken) {
  constexpr int kStep = kDirectionsAtOnce;
  Scratch& scratch = *static_cast<Scratch*>(memory);
  const int64_t first = piece * kPiece, left = job.block.count - first;
  scratch.rows = static_cast<int>(rows.end - rows.begin);
  scratch.count = static_cast<int>(left < kPiece ? left : kPiece);
  load_piece(job.block, rows.begin, first, scratch, broken);
  int64_t direction = 0;
  if (job.number >= kStep) {
    sum_directions<kStep, true>(job, 0, first, scratch, partial);
    direction = kStep;
  } else if (job.number >= 1) {
    sum_directions<1, true>(job, 0, first, scratch, partial);
    direction = 1;
  } else {
    sum_directions<0, true>(job, 0, first, scratch, partial);
  }
  for (; direction + kStep <= job.number; direction += kStep) {
    sum_directions<kStep, false>(job, direction, first, scratch, partial);
  }
  for (; direction < job.number; ++direction) sum_directions<1, false>(job, direction, first, scratch, partial);
}

}  // namespace

const DotsKernel DATAFLEX_DOTS = {sizeof(Scratch), sum_piece};

}  // namespace dataflex
