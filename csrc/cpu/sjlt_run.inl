// One implementation of sjlt.h: a file that includes this one names it with DATAFLEX_SJLT_RUN and is compiled for one
// instruction set. Everything else has internal linkage and uses no inline function of the C++ library: the linker
// could otherwise keep the copy of another instruction set.
//
// The matrix of a chunk of parameters is drawn once; then each row is put on the grid and scattered, piece by piece,
// into 32-bit sums that are added to the totals at the end of the chunk, or before they could overflow.
#include <stdint.h>
#include <string.h>

#include "chunk.h"
#include "intrinsics.h"
#include "philox_lanes.h"
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

// One repetition of `groups` groups of kRows rows, which share the reading of the placements:
// partial[row][output + position] += +-grid[row][group][lane at position].
#if defined(__AVX512F__)

template <int kRows>
inline void scatter(const int32_t* grid, const Placement* placements, int groups, int32_t* partial, int64_t stride) {
  for (int i = 0; i < groups; ++i) {
    const Placement p = placements[i];
    const __m512i lanes =
        _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(kLaneAt.at[p.permutation])));
    for (int r = 0; r < kRows; ++r) {
      const __m512i values = _mm512_load_si512(grid + r * kPiece + i * kLanes);
      const __m512i flipped = _mm512_mask_sub_epi32(values, p.negative, _mm512_setzero_si512(), values);
      const __m512i moved = _mm512_permutexvar_epi32(lanes, flipped);
      int32_t* segment = partial + r * stride + p.output;
      _mm512_store_si512(segment, _mm512_add_epi32(_mm512_load_si512(segment), moved));
    }
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

inline __m256i sign_mask(int bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), bit), bit);
}

inline __m256i flip(const int32_t* values, __m256i negative) {
  const __m256i loaded = _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
  return _mm256_sub_epi32(_mm256_xor_si256(loaded, negative), negative);
}

template <int kRows>
inline void scatter(const int32_t* grid, const Placement* placements, int groups, int32_t* partial, int64_t stride) {
  for (int i = 0; i < groups; ++i) {
    const Placement p = placements[i];
    const __m128i lanes = _mm_load_si128(reinterpret_cast<const __m128i*>(kLaneAt.at[p.permutation]));
    const __m256i first = _mm256_cvtepu8_epi32(lanes), second = _mm256_cvtepu8_epi32(_mm_srli_si128(lanes, 8));
    const __m256i low_mask = sign_mask(p.negative & 255), high_mask = sign_mask(p.negative >> 8);
    for (int r = 0; r < kRows; ++r) {
      const int32_t* values = grid + r * kPiece + i * kLanes;
      const __m256i low = flip(values, low_mask), high = flip(values + 8, high_mask);
      __m256i* segment = reinterpret_cast<__m256i*>(partial + r * stride + p.output);
      _mm256_store_si256(segment, _mm256_add_epi32(_mm256_load_si256(segment), pick(low, high, first)));
      _mm256_store_si256(segment + 1, _mm256_add_epi32(_mm256_load_si256(segment + 1), pick(low, high, second)));
    }
  }
}

#else

template <int kRows>
inline void scatter(const int32_t* grid, const Placement* placements, int groups, int32_t* partial, int64_t stride) {
  for (int i = 0; i < groups; ++i) {
    const Placement p = placements[i];
    const uint8_t* lanes = kLaneAt.at[p.permutation];
    for (int r = 0; r < kRows; ++r) {
      const int32_t* values = grid + r * kPiece + i * kLanes;
      int32_t* segment = partial + r * stride + p.output;
      int32_t flipped[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int32_t sign = -((p.negative & 1 << lane) != 0);
        flipped[lane] = (values[lane] ^ sign) - sign;
      }
      for (int position = 0; position < kLanes; ++position) segment[position] += flipped[lanes[position]];
    }
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
  for (int start = 0; start < count; start += kPhiloxLanes) {
    const int some = count - start < kPhiloxLanes ? count - start : kPhiloxLanes;
    for (int j = 0; j < job.sparsity; j += 2) {
      Words<kPhiloxLanes> words;
      for (int i = 0; i < kPhiloxLanes; ++i) {
        const uint64_t group = static_cast<uint64_t>(first + start + i);
        words.at[0][i] = static_cast<uint32_t>(group);
        words.at[1][i] = static_cast<uint32_t>(group >> 32);
        words.at[2][i] = static_cast<uint32_t>(j / 2);
        words.at[3][i] = kSjltDomain;
      }
      philox_lanes(words, static_cast<uint32_t>(job.seed), static_cast<uint32_t>(job.seed >> 32));
      for (int odd = 0; odd < 2 && j + odd < job.sparsity; ++odd) {
        for (int i = 0; i < some; ++i) {
          placements[(j + odd) * kChunkGroups + start + i] =
              make_placement(job, j + odd, words.at[2 * odd][i], words.at[2 * odd + 1][i]);
        }
      }
    }
  }
}

void flush(int32_t* partial, int64_t* sums, int dim) {
  for (int i = 0; i < dim; ++i) sums[i] += partial[i];
  memset(partial, 0, sizeof(int32_t) * dim);
}

// Rows that go through a chunk together.
struct RowBlock {
  int64_t first;
  int count;
  int64_t bound[kRowsAtOnce];  // of the magnitude of the 32-bit sums: an output gets at most one value of a group
};

// Puts a piece of each row on the grid; empties the 32-bit sums that the piece might overflow.
void load_piece(const SjltJob& job, RowBlock& rows, int64_t group, int groups, const Totals& totals,
                const Workspace& space) {
  for (int r = 0; r < rows.count; ++r) {
    const int64_t row = rows.first + r;
    const GridFacts facts = load_grid(job.block, row, group * kLanes, groups * kLanes, job.exponents[row], kSjltLimit,
                                      space.grid + r * kPiece);
    if (facts.broken > 0) totals.not_finite[row] = 1;
    totals.saturated[row] += facts.saturated;
    const int64_t added = int64_t{groups} * facts.largest;
    if (rows.bound[r] + added > INT32_MAX) {
      flush(space.partial + r * space.stride, totals.sums + row * job.dim, job.dim);
      rows.bound[r] = 0;
    }
    rows.bound[r] += added;
  }
}

void scatter(int rows, const Workspace& space, const Placement* placements, int groups) {
  if (rows == 4) return scatter<4>(space.grid, placements, groups, space.partial, space.stride);
  if (rows == 3) return scatter<3>(space.grid, placements, groups, space.partial, space.stride);
  if (rows == 2) return scatter<2>(space.grid, placements, groups, space.partial, space.stride);
  scatter<1>(space.grid, placements, groups, space.partial, space.stride);
}

// Adds a few rows of a chunk to their totals.
void add_rows(const SjltJob& job, RowBlock rows, int64_t first, int groups, const Totals& totals,
              const Workspace& space) {
  for (int piece = 0; piece < groups; piece += kPieceGroups) {
    const int some = groups - piece < kPieceGroups ? groups - piece : kPieceGroups;
    load_piece(job, rows, first + piece, some, totals, space);
    for (int j = 0; j < job.sparsity; ++j) {
      scatter(rows.count, space, space.placements + j * kChunkGroups + piece, some);
    }
  }
  for (int r = 0; r < rows.count; ++r) {
    flush(space.partial + r * space.stride, totals.sums + (rows.first + r) * job.dim, job.dim);
  }
}

}  // namespace

void DATAFLEX_SJLT_RUN(const SjltJob& job, Range rows, Range groups, const Totals& totals, const Workspace& space) {
  for (int64_t first = groups.begin; first < groups.end; first += kChunkGroups) {
    const int count = static_cast<int>(groups.end - first < kChunkGroups ? groups.end - first : kChunkGroups);
    place(job, first, count, space.placements);
    for (int64_t row = rows.begin; row < rows.end; row += kRowsAtOnce) {
      const int some = rows.end - row < kRowsAtOnce ? static_cast<int>(rows.end - row) : kRowsAtOnce;
      add_rows(job, {row, some, {}}, first, count, totals, space);
    }
  }
}

}  // namespace dataflex
