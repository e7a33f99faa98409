// One implementation of sjlt.h: a file that includes this one names it with DATAFLEX_SJLT_RUN and is compiled for one
// instruction set. Everything else has internal linkage and uses no inline function of the C++ library: the linker
// could otherwise keep the copy of another instruction set.
//
// The matrix of a chunk of parameters is drawn once, and its groups are sorted by the segment that they go to. Then the
// rows are put on the grid, and each segment's groups are added up in registers: no store stands between two additions,
// which costs less than scattering the groups in their order, though they are then read from the second-level cache.
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

// Of one repetition.
inline int segments_of(const SjltJob& job) { return job.dim / job.sparsity / kLanes; }

// The sums of kRows rows in one segment, in registers: add(group, entry) is
// sum[row][position] += +-grid[row][group, lane at position], flush(totals) adds them to the totals.
#if defined(__AVX512F__)

template <int kRows>
struct SegmentSums {
  __m512i sums[kRows];

  SegmentSums() {
    for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_si512();
  }

  void add(const int32_t* grid, Entry entry) {
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(kLaneAt.at[entry.permutation]));
    const __m512i lanes = _mm512_cvtepu8_epi32(bytes);
    for (int r = 0; r < kRows; ++r) {
      const __m512i values = _mm512_load_si512(grid + r * kGridStride);
      const __m512i flipped = _mm512_mask_sub_epi32(values, entry.negative, _mm512_setzero_si512(), values);
      sums[r] = _mm512_add_epi32(sums[r], _mm512_permutexvar_epi32(lanes, flipped));
    }
  }

  void flush(int64_t* totals, int64_t distance) const {
    for (int r = 0; r < kRows; ++r) {
      add_to(totals + r * distance, _mm512_castsi512_si256(sums[r]));
      add_to(totals + r * distance + 8, _mm512_extracti64x4_epi64(sums[r], 1));
    }
  }

  static void add_to(int64_t* totals, __m256i sums) {
    _mm512_storeu_si512(totals, _mm512_add_epi64(_mm512_loadu_si512(totals), _mm512_cvtepi32_epi64(sums)));
  }
};

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
struct SegmentSums {
  __m256i sums[kRows][2];

  SegmentSums() {
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  }

  void add(const int32_t* grid, Entry entry) {
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(kLaneAt.at[entry.permutation]));
    const __m256i first = _mm256_cvtepu8_epi32(bytes), second = _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8));
    const __m256i low_mask = sign_mask(entry.negative & 255), high_mask = sign_mask(entry.negative >> 8);
    for (int r = 0; r < kRows; ++r) {
      const int32_t* values = grid + r * kGridStride;
      const __m256i low = flip(values, low_mask), high = flip(values + 8, high_mask);
      sums[r][0] = _mm256_add_epi32(sums[r][0], pick(low, high, first));
      sums[r][1] = _mm256_add_epi32(sums[r][1], pick(low, high, second));
    }
  }

  void flush(int64_t* totals, int64_t distance) const {
    alignas(32) int32_t values[kLanes];
    for (int r = 0; r < kRows; ++r) {
      for (int half = 0; half < 2; ++half) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(values + 8 * half), sums[r][half]);
      }
      for (int position = 0; position < kLanes; ++position) totals[r * distance + position] += values[position];
    }
  }
};

#else

template <int kRows>
struct SegmentSums {
  int32_t sums[kRows][kLanes] = {};

  void add(const int32_t* grid, Entry entry) {
    const uint8_t* lanes = kLaneAt.at[entry.permutation];
    for (int r = 0; r < kRows; ++r) {
      const int32_t* values = grid + r * kGridStride;
      int32_t flipped[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int32_t sign = -((entry.negative & 1 << lane) != 0);
        flipped[lane] = (values[lane] ^ sign) - sign;
      }
      for (int position = 0; position < kLanes; ++position) sums[r][position] += flipped[lanes[position]];
    }
  }

  void flush(int64_t* totals, int64_t distance) const {
    for (int r = 0; r < kRows; ++r) {
      for (int position = 0; position < kLanes; ++position) totals[r * distance + position] += sums[r][position];
    }
  }
};

#endif

// Draws segment and shape of `count` groups in each repetition, two repetitions a time.
void draw(const SjltJob& job, int64_t first, int count, Draw* draws) {
  const uint32_t segments = static_cast<uint32_t>(segments_of(job));
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
          const uint32_t segment = static_cast<uint32_t>(uint64_t{words.at[2 * odd][i]} * segments >> 32);
          draws[(j + odd) * kChunkGroups + start + i] = {segment, words.at[2 * odd + 1][i]};
        }
      }
    }
  }
}

inline Entry make_entry(int group, uint32_t shape) {
  const uint32_t multiplier_less_one = (shape >> 20) * 15 >> 12;
  return {static_cast<uint16_t>(group), static_cast<uint16_t>(shape & 0xFFFFu),
          static_cast<uint16_t>(multiplier_less_one * kLanes + (shape >> 16 & 15u))};
}

// Sorts the groups of each repetition by segment (a counting sort).
void sort(const SjltJob& job, int count, const Workspace& space) {
  const int segments = segments_of(job);
  for (int j = 0; j < job.sparsity; ++j) {
    const Draw* draws = space.draws + j * kChunkGroups;
    Entry* entries = space.entries + j * kChunkGroups;
    int32_t* ends = space.ends + j * segments;
    memset(ends, 0, sizeof(int32_t) * segments);
    for (int i = 0; i < count; ++i) ++ends[draws[i].segment];
    int32_t before = 0;
    for (int segment = 0; segment < segments; ++segment) {
      const int32_t size = ends[segment];
      ends[segment] = before;
      before += size;
    }
    for (int i = 0; i < count; ++i) entries[ends[draws[i].segment]++] = make_entry(i, draws[i].shape);
  }
}

// Adds the grids of kRows rows to their totals, segment by segment.
template <int kRows>
void add_groups(const SjltJob& job, const Workspace& space, int64_t* totals) {
  const int segments = segments_of(job);
  for (int j = 0; j < job.sparsity; ++j) {
    const Entry* entries = space.entries + j * kChunkGroups;
    int32_t place = 0;
    for (int segment = 0; segment < segments; ++segment) {
      for (const int32_t end = space.ends[j * segments + segment]; place < end;) {
        const int32_t stop = end - place < kMostAdded ? end : place + kMostAdded;
        SegmentSums<kRows> sums;
        for (; place < stop; ++place) sums.add(space.grid + entries[place].group * kLanes, entries[place]);
        sums.flush(totals + (j * segments + segment) * kLanes, job.dim);
      }
    }
  }
}

void add_groups(int rows, const SjltJob& job, const Workspace& space, int64_t* totals) {
  if (rows == 4) return add_groups<4>(job, space, totals);
  if (rows == 3) return add_groups<3>(job, space, totals);
  if (rows == 2) return add_groups<2>(job, space, totals);
  add_groups<1>(job, space, totals);
}

#if defined(__AVX512F__)

inline __m512 widen_group(const float* stored) { return _mm512_loadu_ps(stored); }
inline __m512 widen_group(const BFloat16* stored) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m512 widen_group(const Float16* stored) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored)));
}

// Clears in `good` the lanes where |values| <= limit does not hold.
inline __mmask16 still_good(__mmask16 good, __m512 values, float limit) {
  return _mm512_mask_cmp_ps_mask(good, _mm512_abs_ps(values), _mm512_set1_ps(limit), _CMP_LE_OQ);
}

// values.h in vectors: the same operations in the same order.
template <AdamVariant variant>
inline __m512 normalised_group(const Adam& adam, __m512 g, int64_t first, __mmask16& good) {
  if constexpr (variant == AdamVariant::kNone) {
    return g;
  } else {
    const __m512 m = _mm512_loadu_ps(adam.exp_avg + first), v = _mm512_loadu_ps(adam.exp_avg_sq + first);
    const __m512 mean = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(adam.beta1), m),
                                      _mm512_mul_ps(_mm512_set1_ps(adam.one_minus_beta1), g));
    const __m512 square = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(adam.beta2), v),
                                        _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(adam.one_minus_beta2), g), g));
    const __m512 eps = _mm512_set1_ps(adam.eps);
    __m512 numerator = mean, denominator;
    if constexpr (variant == AdamVariant::kAdamW) {
      numerator = _mm512_mul_ps(mean, _mm512_set1_ps(adam.correction1));
      denominator = _mm512_add_ps(_mm512_sqrt_ps(_mm512_mul_ps(square, _mm512_set1_ps(adam.correction2))), eps);
    } else {
      denominator = _mm512_sqrt_ps(_mm512_add_ps(square, eps));
    }
    good = still_good(good, denominator, FLT_MAX);
    return _mm512_div_ps(numerator, denominator);
  }
}

// What load_grid does, for whole groups inside the block whose values are all finite and on the grid. Returns whether
// they are: counting those that are not would cost as much as the rest.
template <AdamVariant variant, class Stored>
bool load_good_groups(const SjltJob& job, int64_t row, int64_t group, int groups, int32_t* grid) {
  const Gradients& block = job.block;
  const Adam adam = block.adam;
  const int64_t first = group * kLanes - block.offset;
  const Stored* stored = static_cast<const Stored*>(block.values) + row * block.row_stride + first;
  const float scale = power_of_two(job.exponents[row]);
  __mmask16 good = 0xFFFF;
  for (int i = 0; i < groups * kLanes; i += kLanes) {
    const __m512 u = normalised_group<variant>(adam, widen_group(stored + i), first + i, good);
    const __m512 x = _mm512_mul_ps(u, _mm512_set1_ps(scale));
    good = still_good(good, x, kSjltLimit);
    _mm512_store_si512(grid + i, _mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  return good == 0xFFFF;
}

using LoadGoodGroups = bool (*)(const SjltJob&, int64_t row, int64_t group, int groups, int32_t* grid);

template <class Stored>
LoadGoodGroups load_good_groups_of(AdamVariant variant) {
  switch (variant) {
    case AdamVariant::kAdamW:
      return load_good_groups<AdamVariant::kAdamW, Stored>;
    case AdamVariant::kLess:
      return load_good_groups<AdamVariant::kLess, Stored>;
    default:
      return load_good_groups<AdamVariant::kNone, Stored>;
  }
}

LoadGoodGroups load_good_groups_of(const Gradients& block) {
  switch (block.type) {
    case ValueType::kBFloat16:
      return load_good_groups_of<BFloat16>(block.adam.variant);
    case ValueType::kFloat16:
      return load_good_groups_of<Float16>(block.adam.variant);
    default:
      return load_good_groups_of<float>(block.adam.variant);
  }
}

bool load_good(const SjltJob& job, int64_t row, int64_t group, int groups, int32_t* grid) {
  const Gradients& block = job.block;
  const bool inside = group * kLanes >= block.offset && (group + groups) * kLanes <= block.offset + block.count;
  return inside && load_good_groups_of(block)(job, row, group, groups, grid);
}

#else

bool load_good(const SjltJob&, int64_t, int64_t, int, int32_t*) { return false; }

#endif

// Puts some groups of some rows on the grid.
void load_rows(const SjltJob& job, Range rows, int64_t group, int groups, const Totals& totals, int32_t* grid) {
  for (int64_t row = rows.begin; row < rows.end; ++row, grid += kGridStride) {
    if (load_good(job, row, group, groups, grid)) continue;
    const GridFacts facts =
        load_grid(job.block, row, group * kLanes, groups * kLanes, job.exponents[row], kSjltLimit, grid);
    if (facts.broken > 0) totals.not_finite[row] = 1;
    totals.saturated[row] += facts.saturated;
  }
}

}  // namespace

void DATAFLEX_SJLT_RUN(const SjltJob& job, Range rows, Range groups, const Totals& totals, const Workspace& space) {
  for (int64_t first = groups.begin; first < groups.end; first += kChunkGroups) {
    const int count = static_cast<int>(groups.end - first < kChunkGroups ? groups.end - first : kChunkGroups);
    draw(job, first, count, space.draws);
    sort(job, count, space);
    for (int64_t row = rows.begin; row < rows.end; row += kRowsAtOnce) {
      const Range some{row, rows.end - row < kRowsAtOnce ? rows.end : row + kRowsAtOnce};
      load_rows(job, some, first, count, totals, space.grid);
      add_groups(static_cast<int>(some.end - some.begin), job, space, totals.sums + row * job.dim);
    }
  }
}

}  // namespace dataflex
