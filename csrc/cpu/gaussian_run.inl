// One implementation of gaussian.h: a file that includes this one names it with DATAFLEX_GAUSSIAN and is compiled for
// one instruction set. As in sjlt_run.inl, everything else has internal linkage and uses no inline function of the C++
// library.
//
// The values of a chunk of parameters are normalised for up to kRowSlots rows; then, for each few outputs, the chunk's
// entries are drawn once, multiplied with all rows in float32, and added to the binary64 sums.
#include <stdint.h>
#include <string.h>

#include "chunk.h"
#include "gaussian_entries.h"
#include "gaussian_run.h"
#include "intrinsics.h"

namespace dataflex {
namespace {

constexpr int kRowSlots = 32;  // rows that share a draw of the entries
constexpr int kChunk = 256;    // parameters: their entries (32 KiB) stay in the first-level cache or near it

#if defined(__AVX512F__)

using Floats = __m512;
constexpr int kRowsAtOnce = 8;
inline Floats load(const float* source) { return _mm512_load_ps(source); }
inline void store(float* target, Floats x) { _mm512_store_ps(target, x); }
inline Floats add_product(Floats sum, float a, Floats b) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, sum); }

#elif defined(__AVX2__)

using Floats = __m256;
constexpr int kRowsAtOnce = 4;
inline Floats load(const float* source) { return _mm256_load_ps(source); }
inline void store(float* target, Floats x) { _mm256_store_ps(target, x); }
inline Floats add_product(Floats sum, float a, Floats b) { return _mm256_fmadd_ps(_mm256_set1_ps(a), b, sum); }

#else

typedef float Floats __attribute__((vector_size(16)));  // what every 64-bit processor has
constexpr int kRowsAtOnce = 2;
inline Floats load(const float* source) { return *reinterpret_cast<const Floats*>(source); }
inline void store(float* target, Floats x) { *reinterpret_cast<Floats*>(target) = x; }
inline Floats add_product(Floats sum, float a, Floats b) { return sum + a * b; }

#endif

constexpr int kOutputs = 2 * kPhiloxLanes;  // whose sums are kept in registers
constexpr int kWidth = sizeof(Floats) / sizeof(float);
constexpr int kVectors = kOutputs / kWidth;
static_assert(kGaussianTile % kOutputs == 0, "shares are made of whole tiles");

struct Scratch {
  alignas(64) float values[kRowSlots][kChunk];
  alignas(64) float entries[kChunk][kOutputs];
  alignas(64) float sums[kRowsAtOnce][kOutputs];
};

// values[row]: u of the parameters from `start` on, 0 outside the block and where it is not finite.
void load_rows(const GaussianJob& job, Range rows, int64_t start, Scratch& scratch, uint8_t* not_finite) {
  const Gradients& block = job.block;
  const int64_t begin = start > block.offset ? start : block.offset;
  const int64_t stop = block.offset + block.count;
  const int64_t end = start + kChunk < stop ? start + kChunk : stop;
  const int inside = static_cast<int>(end - begin);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    float* values = scratch.values[row - rows.begin];
    if (inside < kChunk) memset(values, 0, sizeof scratch.values[0]);
    float* first = values + (begin - start);
    if (load_values(block, row, begin - block.offset, inside, first) == 0) continue;
    for (int i = 0; i < inside; ++i) first[i] = is_finite(first[i]) ? first[i] : 0.0f;
    if (not_finite != nullptr) not_finite[row] = 1;
  }
}

void draw(const GaussianJob& job, int64_t start, int64_t output, Scratch& scratch) {
  for (int i = 0; i < kChunk; i += 4) {
    for (int part = 0; part < kOutputs; part += kPhiloxLanes) {
      float entries[4][kPhiloxLanes];
      draw_entries(job, (start + i) / 4, output + part, entries);
      for (int m = 0; m < 4; ++m) memcpy(scratch.entries[i + m] + part, entries[m], sizeof entries[m]);
    }
  }
}

// sums[r][output] of the rows from `row` on.
void multiply(int row, Scratch& scratch) {
  Floats sums[kRowsAtOnce][kVectors] = {};
  for (int i = 0; i < kChunk; ++i) {
    Floats entries[kVectors];
    for (int v = 0; v < kVectors; ++v) entries[v] = load(scratch.entries[i] + v * kWidth);
    for (int r = 0; r < kRowsAtOnce; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] = add_product(sums[r][v], scratch.values[row + r][i], entries[v]);
    }
  }
  for (int r = 0; r < kRowsAtOnce; ++r) {
    for (int v = 0; v < kVectors; ++v) store(scratch.sums[r] + v * kWidth, sums[r][v]);
  }
}

void add_outputs(const GaussianJob& job, Range rows, int64_t output, int count, Scratch& scratch, double* totals) {
  const int some = static_cast<int>(rows.end - rows.begin);
  for (int row = 0; row < some; row += kRowsAtOnce) {
    multiply(row, scratch);
    for (int r = 0; r < kRowsAtOnce && row + r < some; ++r) {
      double* target = totals + (rows.begin + row + r) * job.dim + output;
      for (int o = 0; o < count; ++o) target[o] += static_cast<double>(scratch.sums[r][o]);
    }
  }
}

void accumulate(const GaussianJob& job, Range outputs, const GaussianTotals& totals, void* memory) {
  Scratch& scratch = *static_cast<Scratch*>(memory);
  const Gradients& block = job.block;
  uint8_t* not_finite = outputs.begin == 0 ? totals.not_finite : nullptr;
  for (int64_t first = 0; first < block.rows; first += kRowSlots) {
    const Range rows{first, first + kRowSlots < block.rows ? first + kRowSlots : block.rows};
    memset(scratch.values, 0, sizeof scratch.values);
    for (int64_t start = block.offset / 4 * 4; start < block.offset + block.count; start += kChunk) {
      load_rows(job, rows, start, scratch, not_finite);
      for (int64_t output = outputs.begin; output < outputs.end; output += kOutputs) {
        const int64_t left = outputs.end - output;
        draw(job, start, output, scratch);
        add_outputs(job, rows, output, left < kOutputs ? static_cast<int>(left) : kOutputs, scratch, totals.sums);
      }
    }
  }
}

}  // namespace

const GaussianKernel DATAFLEX_GAUSSIAN = {sizeof(Scratch), accumulate};

}  // namespace dataflex
