// One implementation of sjlt.h: a file that includes this one names it with DATAFLEX_SJLT_RUN and is compiled for one
// instruction set. Everything else has internal linkage and uses no inline function of the C++ library: the linker
// could otherwise keep the copy of another instruction set.
//
// A chunk of parameters fits the first-level cache: its matrix is drawn once, then each row goes through widen,
// normalise, quantise and scatter, into 32-bit sums that are added to the totals at the end of the chunk.
#include <stdint.h>
#include <string.h>

#include "chunk.h"
#include "intrinsics.h"
#include "philox.h"
#include "sjlt_run.h"

namespace dataflex {
namespace {

constexpr int multiply_gf16(int a, int b) {
  int product = 0;
  for (int bit = 0; bit < 4; ++bit) {
    if (b >> bit & 1) product ^= a << bit;
  }
  for (int bit = 6; bit >= 4; --bit) {
    if (product >> bit & 1) product ^= 0b10011 << (bit - 4);
  }
  return product;
}

struct alignas(64) Positions {
  uint8_t at[15 * kLanes][kLanes];
};

// at[16 * (multiplier - 1) + shift][position] = the lane that goes to this position.
constexpr Positions make_lanes() {
  Positions table{};
  for (int row = 0; row < 15 * kLanes; ++row) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int position = multiply_gf16(1 + row / kLanes, lane) ^ (row % kLanes);
      table.at[row][position] = static_cast<uint8_t>(lane);
    }
  }
  return table;
}

constexpr Positions kLaneAt = make_lanes();

// partial[output + position] += +-grid[lane at position], for the 16 values of a group in each repetition.
#if defined(__AVX512F__)

inline void scatter_group(const int32_t* grid, const Placement* placements, int sparsity, int32_t* partial) {
  const __m512i values = _mm512_load_si512(grid);
  for (int j = 0; j < sparsity; ++j) {
    const Placement p = placements[j];
    const __m512i lanes =
        _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(kLaneAt.at[p.permutation])));
    const __m512i flipped = _mm512_mask_sub_epi32(values, p.negative, _mm512_setzero_si512(), values);
    const __m512i moved = _mm512_permutexvar_epi32(lanes, flipped);
    int32_t* segment = partial + p.output;
    _mm512_store_si512(segment, _mm512_add_epi32(_mm512_load_si512(segment), moved));
  }
}

#elif defined(__AVX2__)

// Eight of the 16 lanes in the order that `lanes` names.
inline __m256i pick(__m256i low, __m256i high, __m256i lanes) {
  const __m256 from_low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low, lanes));
  const __m256 from_high = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, lanes));
  const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28));  // bit 3 of the lane becomes the sign
  return _mm256_castps_si256(_mm256_blendv_ps(from_low, from_high, is_high));
}

inline __m256i flip(__m256i values, int bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i negative = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), bit), bit);
  return _mm256_sub_epi32(_mm256_xor_si256(values, negative), negative);
}

inline void scatter_group(const int32_t* grid, const Placement* placements, int sparsity, int32_t* partial) {
  const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(grid));
  const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(grid + 8));
  for (int j = 0; j < sparsity; ++j) {
    const Placement p = placements[j];
    const __m128i lanes = _mm_load_si128(reinterpret_cast<const __m128i*>(kLaneAt.at[p.permutation]));
    const __m256i flipped_low = flip(low, p.negative & 255);
    const __m256i flipped_high = flip(high, p.negative >> 8);
    __m256i* segment = reinterpret_cast<__m256i*>(partial + p.output);
    const __m256i first = pick(flipped_low, flipped_high, _mm256_cvtepu8_epi32(lanes));
    const __m256i second = pick(flipped_low, flipped_high, _mm256_cvtepu8_epi32(_mm_srli_si128(lanes, 8)));
    _mm256_store_si256(segment, _mm256_add_epi32(_mm256_load_si256(segment), first));
    _mm256_store_si256(segment + 1, _mm256_add_epi32(_mm256_load_si256(segment + 1), second));
  }
}

#else

inline void scatter_group(const int32_t* grid, const Placement* placements, int sparsity, int32_t* partial) {
  for (int j = 0; j < sparsity; ++j) {
    const Placement p = placements[j];
    const uint8_t* lanes = kLaneAt.at[p.permutation];
    int32_t* segment = partial + p.output;
    int32_t flipped[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int32_t sign = -((p.negative & 1 << lane) != 0);
      flipped[lane] = (grid[lane] ^ sign) - sign;
    }
    for (int position = 0; position < kLanes; ++position) segment[position] += flipped[lanes[position]];
  }
}

#endif

inline Placement make_placement(const SjltJob& job, int j, uint32_t place, uint32_t shape) {
  const int32_t outputs = job.dim / job.sparsity;
  const uint32_t segment = static_cast<uint32_t>(uint64_t{place} * static_cast<uint32_t>(outputs / kLanes) >> 32);
  const uint32_t multiplier_less_one = (shape >> 20) * 15 >> 12;
  return {j * outputs + static_cast<int32_t>(segment) * kLanes, static_cast<uint16_t>(shape & 0xFFFFu),
          static_cast<uint16_t>(multiplier_less_one * kLanes + (shape >> 16 & 15u))};
}

// Draws the placements of `count` groups, two repetitions a time.
void place(const SjltJob& job, int64_t first, int count, Placement* placements) {
  const uint32_t key0 = static_cast<uint32_t>(job.seed);
  const uint32_t key1 = static_cast<uint32_t>(job.seed >> 32);
  for (int j = 0; j < job.sparsity; j += 2) {
    Words<kChunkGroups> words;
    for (int i = 0; i < kChunkGroups; ++i) {
      const uint64_t group = static_cast<uint64_t>(first + i);
      words.at[0][i] = static_cast<uint32_t>(group);
      words.at[1][i] = static_cast<uint32_t>(group >> 32);
      words.at[2][i] = static_cast<uint32_t>(j / 2);
      words.at[3][i] = kSjltDomain;
    }
    philox4x32(words, key0, key1);
    for (int odd = 0; odd < 2 && j + odd < job.sparsity; ++odd) {
      for (int i = 0; i < count; ++i) {
        placements[i * job.sparsity + j + odd] =
            make_placement(job, j + odd, words.at[2 * odd][i], words.at[2 * odd + 1][i]);
      }
    }
  }
}

// Fills the grid with the chunk's integers; lanes of the chunk that are outside the block are zero.
void load(const SjltJob& job, int64_t row, int64_t first_group, int groups, const Totals& totals,
          const Workspace& space) {
  const Gradients& block = job.block;
  const int64_t start = first_group * kLanes, stop = start + groups * kLanes;
  const int64_t begin = start > block.offset ? start : block.offset;
  const int64_t end = stop < block.offset + block.count ? stop : block.offset + block.count;
  const int count = static_cast<int>(end - begin);
  if (count < groups * kLanes) memset(space.grid, 0, sizeof(int32_t) * groups * kLanes);
  if (load_values(block, row, begin - block.offset, count, space.values) > 0) totals.not_finite[row] = 1;
  totals.saturated[row] += quantise(space.values, job.exponents[row], kSjltLimit, count, space.grid + (begin - start));
}

void flush(int32_t* partial, int64_t* sums, int dim) {
  for (int i = 0; i < dim; ++i) sums[i] += partial[i];
  memset(partial, 0, sizeof(int32_t) * dim);
}

}  // namespace

void DATAFLEX_SJLT_RUN(const SjltJob& job, Range rows, Range groups, const Totals& totals, const Workspace& space) {
  for (int64_t first = groups.begin; first < groups.end; first += kChunkGroups) {
    const int count = static_cast<int>(groups.end - first < kChunkGroups ? groups.end - first : kChunkGroups);
    place(job, first, count, space.placements);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      load(job, row, first, count, totals, space);
      for (int i = 0; i < count; ++i) {
        scatter_group(space.grid + i * kLanes, space.placements + i * job.sparsity, job.sparsity, space.partial);
      }
      flush(space.partial, totals.sums + row * job.dim, job.dim);
    }
  }
}

}  // namespace dataflex
