// One implementation of sjlt.h: a file that includes this one names it with DATAFLEX_SJLT_RUN and is compiled for one
// instruction set. Everything else has internal linkage and uses no inline function of the C++ library: the linker
// could otherwise keep the copy of another instruction set.
//
// The matrix of a chunk of parameters is drawn once. Each row then passes through it group by group: a group is put on
// the grid and added to the 32-bit sums of its segments, which stay in the first-level cache; at the end of the chunk
// the row's sums are added to its totals. With AVX-512 a group is added while later ones wait for their square roots
// and divisions, whose unit is busy 22 cycles a group (Cascade Lake): the additions cost little beyond that.
#include <stdint.h>
#include <string.h>

#include "chunk.h"
#include "intrinsics.h"
#include "philox_lanes.h"
#include "sjlt_group.h"
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

// What kPhiloxLanes groups draw in four repetitions.
struct Quad {
  int32_t segments[4][kPhiloxLanes];
  uint32_t shapes[4][kPhiloxLanes];
  uint32_t permutations[4][kPhiloxLanes];  // rows of kLaneAt
};

// Draws the groups from `first` on in repetitions `repetition` to repetition + 3, of which those past the last mean
// nothing.
void draw_quad(uint64_t seed, int64_t first, int repetition, int segments, Quad& quad) {
  for (int pair = 0; pair < 2; ++pair) {
    Words<kPhiloxLanes> words;
    for (int i = 0; i < kPhiloxLanes; ++i) {
      const uint64_t group = static_cast<uint64_t>(first + i);
      words.at[0][i] = static_cast<uint32_t>(group);
      words.at[1][i] = static_cast<uint32_t>(group >> 32);
      words.at[2][i] = static_cast<uint32_t>(repetition / 2 + pair);
      words.at[3][i] = kSjltDomain;
    }
    philox_lanes(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    for (int odd = 0; odd < 2; ++odd) {
      const int j = 2 * pair + odd;
      for (int i = 0; i < kPhiloxLanes; ++i) {
        const uint32_t place = words.at[2 * odd][i], shape = words.at[2 * odd + 1][i];
        const uint32_t segment = static_cast<uint32_t>(uint64_t{place} * static_cast<uint32_t>(segments) >> 32);
        quad.segments[j][i] = (repetition + j) * segments + static_cast<int32_t>(segment);
        quad.shapes[j][i] = shape;
        quad.permutations[j][i] = ((shape >> 20) * 15 >> 12) * kLanes + (shape >> 16 & 15u);
      }
    }
  }
}

// The words of group `i` (sjlt_group.h).
inline void write_sources(const Quad& quad, int i, int repetitions, uint32_t* words) {
  uint32_t sources[kLanes] = {};
  for (int j = 0; j < repetitions; ++j) {
    const uint8_t* lanes = kLaneAt.at[quad.permutations[j][i]];
    const uint32_t shape = quad.shapes[j][i];
    for (int position = 0; position < kLanes; ++position) {
      const uint32_t lane = lanes[position], negative = shape >> lane & 1u;
      sources[position] |= (lane | negative * kFlips) << 8 * j;
    }
  }
  memcpy(words, sources, sizeof sources);
}

// Draws up to `count` groups, so few that the sums of a segment cannot overflow. Returns how many.
int draw(const SjltJob& job, int64_t first, int count, Workspace space) {
  const int sparsity = job.sparsity, segments = segments_of(job);
  memset(space.hits, 0, sizeof(uint16_t) * (job.dim / kLanes));
  int most = 0;
  for (int start = 0; start < count; start += kPhiloxLanes) {
    if (most + kPhiloxLanes > kMostAdded) return start;
    const int some = count - start < kPhiloxLanes ? count - start : kPhiloxLanes;
    for (int first_of_quad = 0; first_of_quad < sparsity; first_of_quad += 4) {
      Quad quad;
      draw_quad(job.seed, first + start, first_of_quad, segments, quad);
      const int repetitions = sparsity - first_of_quad < 4 ? sparsity - first_of_quad : 4;
      for (int i = 0; i < some; ++i) {
        for (int j = 0; j < repetitions; ++j) {
          const int segment = quad.segments[j][i], hits = ++space.hits[segment];
          if (hits > most) most = hits;
          space.outputs[(start + i) * sparsity + first_of_quad + j] = segment * kLanes;
        }
        const int at = (start + i) * quads(sparsity) + first_of_quad / 4;
        write_sources(quad, i, repetitions, space.sources + at * kLanes);
      }
    }
  }
  return count;
}

// Adds group number `i` of the chunk to the sums of its segments. Everything by value: the compiler must see that the
// sums are no part of it.
inline void add_group(Workspace space, int sparsity, int i, const Group& group) {
  const uint32_t* words = space.sources + i * quads(sparsity) * kLanes;
  const int32_t* outputs = space.outputs + i * sparsity;
  for (; sparsity >= 4; sparsity -= 4, words += kLanes, outputs += 4) {
    const Sources sources = load_sources(words);
    group.add<0>(sources, space.sums + outputs[0]);
    group.add<1>(sources, space.sums + outputs[1]);
    group.add<2>(sources, space.sums + outputs[2]);
    group.add<3>(sources, space.sums + outputs[3]);
  }
  if (sparsity == 0) return;
  const Sources sources = load_sources(words);
  group.add<0>(sources, space.sums + outputs[0]);
  if (sparsity > 1) group.add<1>(sources, space.sums + outputs[1]);
  if (sparsity > 2) group.add<2>(sources, space.sums + outputs[2]);
}

// Moves the sums of a row to its totals.
void flush(const SjltJob& job, int32_t* __restrict__ sums, int64_t* __restrict__ totals) {
  for (int output = 0; output < job.dim; ++output) {
    totals[output] += sums[output];
    sums[output] = 0;
  }
}

// Loads and adds a chunk of a row, piece by piece.
void add_pieces(const SjltJob& job, int64_t row, int64_t first, int count, const Totals& totals,
                const Workspace& space) {
  for (int start = 0; start < count; start += kPieceGroups) {
    const int some = count - start < kPieceGroups ? count - start : kPieceGroups;
    const GridFacts facts =
        load_grid(job.block, row, (first + start) * kLanes, some * kLanes, job.exponents[row], kSjltLimit, space.grid);
    if (facts.broken > 0) totals.not_finite[row] = 1;
    totals.saturated[row] += facts.saturated;
    for (int i = 0; i < some; ++i) add_group(space, job.sparsity, start + i, Group(space.grid + i * kLanes));
  }
}

#if defined(__AVX512F__)

// Processors fetch ahead by themselves, but not across the end of a page.
constexpr int kPrefetchBytes = 2048;

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

// A group whose square root is on its way.
struct Started {
  __m512 numerator, root;
};

// The formula of values.h a second time, in vectors and cut in two at the square root: the same operations in the same
// order. One definition would have to wait for its own root and division before a group is added; so cut, the loop of
// add_good_groups does both at once and takes 1.4 to 1.5 times the pass that only normalises, in place of 2.2
// (benchmarks/projection.py, Cascade Lake). tests/projection/kernels/test_native.py holds this form, values.h's and
// plain torch to the same bits, for each variant and instruction set.
template <AdamVariant variant>
inline Started start(const Adam& adam, __m512 g, int64_t first) {
  if constexpr (variant == AdamVariant::kNone) {
    return {g, g};
  } else {
    const __m512 v = _mm512_loadu_ps(adam.exp_avg_sq + first);
    __m512 mean = _mm512_mul_ps(_mm512_set1_ps(adam.one_minus_beta1), g);
    if constexpr (variant != AdamVariant::kSecondMoment) {
      mean = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(adam.beta1), _mm512_loadu_ps(adam.exp_avg + first)), mean);
    }
    const __m512 square = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(adam.beta2), v),
                                        _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(adam.one_minus_beta2), g), g));
    if constexpr (variant == AdamVariant::kLess) {
      return {mean, _mm512_sqrt_ps(_mm512_add_ps(square, _mm512_set1_ps(adam.eps)))};
    } else {
      const __m512 root = _mm512_sqrt_ps(_mm512_mul_ps(square, _mm512_set1_ps(adam.correction2)));
      if constexpr (variant == AdamVariant::kSecondMoment) return {mean, root};
      return {_mm512_mul_ps(mean, _mm512_set1_ps(adam.correction1)), root};
    }
  }
}

// The rest of values.h: the group on the grid.
template <AdamVariant variant>
inline __m512i finish(const Adam& adam, const Started& group, float scale, __mmask16& good) {
  __m512 u = group.numerator;
  if constexpr (variant != AdamVariant::kNone) {
    __m512 denominator = group.root;
    if constexpr (variant != AdamVariant::kLess) denominator = _mm512_add_ps(denominator, _mm512_set1_ps(adam.eps));
    good = still_good(good, denominator, FLT_MAX);
    u = _mm512_div_ps(u, denominator);
  }
  const __m512 x = _mm512_mul_ps(u, _mm512_set1_ps(scale));
  good = still_good(good, x, kSjltLimit);
  return _mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// What add_pieces does, for whole groups inside the block whose values are all finite and on the grid. Returns whether
// they are; if not, the sums are worthless. Counting those that are not would cost as much as the rest.
//
// A pass of the loop starts group i, finishes i - 1 and adds i - 2. None waits for another of the same pass: the
// processor looks ahead less far than a square root, a division and 8 additions to memory take one after the other.
// kSparsity is the job's, or 0: with the usual one known, the additions are one piece of code.
template <AdamVariant variant, class Stored, int kSparsity>
bool add_good_groups(const SjltJob& job, int64_t row, int64_t group, int count, const Workspace& space) {
  const Gradients& block = job.block;
  const int sparsity = kSparsity > 0 ? kSparsity : job.sparsity;
  const Adam adam = block.adam;
  const int64_t first = group * kLanes - block.offset;
  const Stored* stored = static_cast<const Stored*>(block.values) + row * block.row_stride + first;
  const float scale = power_of_two(job.exponents[row]);
  __mmask16 good = 0xFFFF;
  Started started{_mm512_setzero_ps(), _mm512_set1_ps(1.0f)};  // a group of zeros, and so is the one before
  __m512i finished = _mm512_setzero_si512();
  for (int i = 0; i < count + 2; ++i) {
    const int last = i < count ? i : count - 1;
    _mm_prefetch(reinterpret_cast<const char*>(stored + last * kLanes) + kPrefetchBytes, _MM_HINT_T0);
    const Started next = start<variant>(adam, widen_group(stored + last * kLanes), first + last * kLanes);
    const Group ready(finished);
    finished = finish<variant>(adam, started, scale, good);
    add_group(space, sparsity, i < 2 ? 0 : i - 2, ready);
    started = next;
  }
  return good == 0xFFFF;
}

using AddGoodGroups = bool (*)(const SjltJob&, int64_t row, int64_t group, int count, const Workspace&);

template <class Stored, int kSparsity>
AddGoodGroups add_good_groups_of(AdamVariant variant) {
  switch (variant) {
    case AdamVariant::kAdamW:
      return add_good_groups<AdamVariant::kAdamW, Stored, kSparsity>;
    case AdamVariant::kLess:
      return add_good_groups<AdamVariant::kLess, Stored, kSparsity>;
    case AdamVariant::kSecondMoment:
      return add_good_groups<AdamVariant::kSecondMoment, Stored, kSparsity>;
    default:
      return add_good_groups<AdamVariant::kNone, Stored, kSparsity>;
  }
}

template <int kSparsity>
AddGoodGroups add_good_groups_of(const Gradients& block) {
  switch (block.type) {
    case ValueType::kBFloat16:
      return add_good_groups_of<BFloat16, kSparsity>(block.adam.variant);
    case ValueType::kFloat16:
      return add_good_groups_of<Float16, kSparsity>(block.adam.variant);
    default:
      return add_good_groups_of<float, kSparsity>(block.adam.variant);
  }
}

bool add_good(const SjltJob& job, int64_t row, int64_t group, int count, const Workspace& space) {
  const Gradients& block = job.block;
  const bool inside = group * kLanes >= block.offset && (group + count) * kLanes <= block.offset + block.count;
  if (!inside) return false;
  const AddGoodGroups add = job.sparsity == 8 ? add_good_groups_of<8>(block) : add_good_groups_of<0>(block);
  if (add(job, row, group, count, space)) return true;
  memset(space.sums, 0, sizeof(int32_t) * job.dim);
  return false;
}

#else

bool add_good(const SjltJob&, int64_t, int64_t, int, const Workspace&) { return false; }

#endif

}  // namespace

void DATAFLEX_SJLT_RUN(const SjltJob& job, Range rows, Range groups, const Totals& totals, const Workspace& space) {
  for (int64_t first = groups.begin; first < groups.end;) {
    const int most = static_cast<int>(groups.end - first < kChunkGroups ? groups.end - first : kChunkGroups);
    const int count = draw(job, first, most, space);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (!add_good(job, row, first, count, space)) add_pieces(job, row, first, count, totals, space);
      flush(job, space.sums, totals.sums + row * job.dim);
    }
    first += count;
  }
}

}  // namespace dataflex
