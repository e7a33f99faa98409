// One implementation of rademacher.h by tables of sums: a file that includes this one names it with
// DATAFLEX_RADEMACHER and is compiled for one instruction set. As in sjlt_run.inl, everything else has internal linkage
// and uses no inline function of the C++ library.
//
// Of each row and each few parameters, all signed sums are put in a table once; the sign bits of an output are the
// index ("method of the four Russians": Arlazarov, Dinic, Kronrod and Faradzev, 1970). The signs of a chunk of
// parameters are drawn once for all outputs, then a few rows at a time are normalised, quantised, put in tables and
// looked up.
#include <stdint.h>
#include <string.h>

#include "chunk.h"
#include "intrinsics.h"
#include "rademacher_run.h"
#include "rademacher_signs.h"

namespace dataflex {
namespace {

constexpr int kColumns = 16;  // of the 8 x 16 matrix that a block is

#if defined(__AVX512F__)

// Tables of 4 parameters: 16 sums in a register, of which one permutation takes 16: 64 products in two instructions,
// twice what a fused multiply-add does.
constexpr int kRowsAtOnce = 4;   // 16 registers of sums
constexpr int kChunkBlocks = 2;  // 16 KiB of tables
constexpr int kTableSize = 8 * kColumns * 4;

// table (t, nibble 2 c + half), entry n: the sum of the parameters 16 (4 half + s) + 4 t + c, s = 0 .. 3, negative
// where bit s of n is set.
inline void build_tables(const int32_t* grid, int32_t* tables) {
  for (int half = 0; half < 2; ++half) {
    alignas(64) int32_t twice[4][kColumns], all[kColumns];
    __m512i sum = _mm512_setzero_si512();
    for (int s = 0; s < 4; ++s) {
      const __m512i row = _mm512_load_si512(grid + (4 * half + s) * kColumns);
      sum = _mm512_add_epi32(sum, row);
      _mm512_store_si512(twice[s], _mm512_slli_epi32(row, 1));
    }
    _mm512_store_si512(all, sum);
    for (int e = 0; e < kColumns; ++e) {
      __m512i table = _mm512_set1_epi32(all[e]);
      table = _mm512_mask_sub_epi32(table, 0xAAAA, table, _mm512_set1_epi32(twice[0][e]));
      table = _mm512_mask_sub_epi32(table, 0xCCCC, table, _mm512_set1_epi32(twice[1][e]));
      table = _mm512_mask_sub_epi32(table, 0xF0F0, table, _mm512_set1_epi32(twice[2][e]));
      table = _mm512_mask_sub_epi32(table, 0xFF00, table, _mm512_set1_epi32(twice[3][e]));
      _mm512_store_si512(tables + (2 * e + half) * 16, table);
    }
  }
}

// partial[row][i][lane] += the sums that words[block][t][i][lane] name in tables[row][block].
template <int kRows>
inline void add_group(const uint32_t* words, const int32_t* tables, int blocks, int32_t* partial, int64_t row_stride) {
  __m512i sums[kRows][4];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < 4; ++i) sums[r][i] = _mm512_load_si512(partial + r * row_stride + i * 16);
  }
  for (int bt = 0; bt < blocks * 4; ++bt) {
    __m512i indices[4];  // their lowest four bits count
    for (int i = 0; i < 4; ++i) indices[i] = _mm512_load_si512(words + (bt * 4 + i) * 16);
    for (int nibble = 0; nibble < 8; ++nibble) {
      for (int r = 0; r < kRows; ++r) {
        const __m512i table = _mm512_load_si512(tables + r * kChunkBlocks * kTableSize + (bt * 8 + nibble) * 16);
        for (int i = 0; i < 4; ++i) {
          sums[r][i] = _mm512_add_epi32(sums[r][i], _mm512_permutexvar_epi32(indices[i], table));
        }
      }
      for (int i = 0; i < 4; ++i) indices[i] = _mm512_srli_epi32(indices[i], 4);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < 4; ++i) _mm512_store_si512(partial + r * row_stride + i * 16, sums[r][i]);
  }
}

#elif defined(__AVX2__)

// Tables of 4 parameters, of which a register holds half: the other half are the negatives, entry n ^ 15 of entry n.
constexpr int kRowsAtOnce = 4;
constexpr int kChunkBlocks = 2;
constexpr int kTableSize = 8 * kColumns * 2;

inline __m256i load(const void* source) { return _mm256_load_si256(static_cast<const __m256i*>(source)); }

inline __m256i negate_where(__m256i values, __m256i mask) {
  return _mm256_sub_epi32(_mm256_xor_si256(values, mask), mask);
}

// table (t, nibble 2 c + half), entry n < 8: the sum of the parameters 16 (4 half + s) + 4 t + c, s = 0 .. 3, negative
// where bit s of n is set.
inline void build_tables(const int32_t* grid, int32_t* tables) {
  const __m256i bit0 = _mm256_setr_epi32(0, -1, 0, -1, 0, -1, 0, -1);
  const __m256i bit1 = _mm256_setr_epi32(0, 0, -1, -1, 0, 0, -1, -1);
  const __m256i bit2 = _mm256_setr_epi32(0, 0, 0, 0, -1, -1, -1, -1);
  for (int e = 0; e < kColumns; ++e) {
    for (int half = 0; half < 2; ++half) {
      const int32_t* q = grid + 4 * half * kColumns + e;
      __m256i table = _mm256_set1_epi32(q[3 * kColumns]);
      table = _mm256_add_epi32(table, negate_where(_mm256_set1_epi32(q[0]), bit0));
      table = _mm256_add_epi32(table, negate_where(_mm256_set1_epi32(q[kColumns]), bit1));
      table = _mm256_add_epi32(table, negate_where(_mm256_set1_epi32(q[2 * kColumns]), bit2));
      _mm256_store_si256(reinterpret_cast<__m256i*>(tables + (2 * e + half) * 8), table);
    }
  }
}

// Two of the four word vectors of add_group: eight registers of sums.
template <int kRows>
inline void add_half_group(const uint32_t* words, const int32_t* tables, int blocks, int32_t* partial,
                           int64_t row_stride) {
  __m256i sums[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < 2; ++i) sums[r][i] = load(partial + r * row_stride + i * 8);
  }
  for (int bt = 0; bt < blocks * 4; ++bt) {
    __m256i bits[2];
    for (int i = 0; i < 2; ++i) bits[i] = load(words + (bt * 4 + i) * 8);
    for (int nibble = 0; nibble < 8; ++nibble) {
      __m256i indices[2], signs[2];
      for (int i = 0; i < 2; ++i) {
        const __m256i negative = _mm256_srai_epi32(_mm256_slli_epi32(bits[i], 28), 31);  // bit 3 everywhere
        indices[i] = _mm256_xor_si256(bits[i], negative);                                // the lowest three bits count
        signs[i] = _mm256_or_si256(negative, _mm256_set1_epi32(1));
        bits[i] = _mm256_srli_epi32(bits[i], 4);
      }
      for (int r = 0; r < kRows; ++r) {
        const __m256i table = load(tables + r * kChunkBlocks * kTableSize + (bt * 8 + nibble) * 8);
        for (int i = 0; i < 2; ++i) {
          const __m256i found = _mm256_permutevar8x32_epi32(table, indices[i]);
          sums[r][i] = _mm256_add_epi32(sums[r][i], _mm256_sign_epi32(found, signs[i]));
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < 2; ++i) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(partial + r * row_stride + i * 8), sums[r][i]);
    }
  }
}

// partial[row][i][lane] += the sums that words[block][t][i][lane] name in tables[row][block].
template <int kRows>
inline void add_group(const uint32_t* words, const int32_t* tables, int blocks, int32_t* partial, int64_t row_stride) {
  for (int i = 0; i < 4; i += 2) add_half_group<kRows>(words + i * 8, tables, blocks, partial + i * 8, row_stride);
}

#else

// Tables of 8 parameters, one a column: a byte of a word is the index.
constexpr int kRowsAtOnce = 1;
constexpr int kChunkBlocks = 1;  // 16 KiB of tables
constexpr int kTableSize = kColumns * 256;

// table e, entry n: the sum of the parameters 16 s + e, s = 0 .. 7, negative where bit s of n is set.
inline void build_tables(const int32_t* grid, int32_t* tables) {
  for (int e = 0; e < kColumns; ++e) {
    int32_t* table = tables + e * 256;
    table[0] = 0;
    for (int s = 0; s < 8; ++s) table[0] += grid[s * kColumns + e];
    for (int s = 0; s < 8; ++s) {
      const int32_t twice = 2 * grid[s * kColumns + e];
      for (int n = 0; n < 1 << s; ++n) table[(1 << s) + n] = table[n] - twice;
    }
  }
}

// partial[i][lane] += the sums that words[t][i][lane] name in tables.
template <int kRows>
inline void add_group(const uint32_t* words, const int32_t* tables, int, int32_t* partial, int64_t) {
  for (int o = 0; o < 4 * kPhiloxLanes; ++o) {
    int32_t sum = 0;
    for (int t = 0; t < 4; ++t) {
      const uint32_t word = words[t * 4 * kPhiloxLanes + o];
      const int32_t* table = tables + t * 4 * 256;
      sum += table[word & 255u] + table[256 + (word >> 8 & 255u)] + table[512 + (word >> 16 & 255u)] +
             table[768 + (word >> 24)];
    }
    partial[o] += sum;
  }
}

#endif

constexpr int kGroup = 4 * kPhiloxLanes;  // outputs
constexpr int kGroupWords = 4 * kGroup;   // of one block
constexpr int kChunk = kChunkBlocks * kBlock;
static_assert(kTile % kGroup == 0, "a slice is made of whole groups");

// Parts of the scratch memory.
struct Scratch {
  int32_t* grid;    // (kChunk)
  int32_t* tables;  // (kRowsAtOnce, kChunkBlocks, kTableSize)
  uint32_t* words;  // (groups, kChunkBlocks, kGroupWords)
};

constexpr size_t kFixedScratch = sizeof(int32_t) * (kChunk + kRowsAtOnce * kChunkBlocks * kTableSize);

Scratch divide(void* scratch) {
  int32_t* grid = static_cast<int32_t*>(scratch);
  int32_t* tables = grid + kChunk;
  return {grid, tables, reinterpret_cast<uint32_t*>(tables + kRowsAtOnce * kChunkBlocks * kTableSize)};
}

size_t scratch_bytes(const RademacherSlice& slice) {
  return kFixedScratch + slice.tiles() * kTile / kGroup * kChunkBlocks * kGroupWords * sizeof(uint32_t);
}

// Tables of `rows` rows of a chunk.
void load_tables(const RademacherJob& job, int64_t row, int rows, int64_t block, int blocks, const Scratch& scratch,
                 uint8_t* not_finite, int64_t* saturated) {
  for (int r = 0; r < rows; ++r) {
    const GridFacts facts = load_grid(job.block, row + r, block * kBlock, blocks * kBlock, job.exponents[row + r],
                                      kRademacherLimit, scratch.grid);
    if (facts.broken > 0) not_finite[r] = 1;
    saturated[r] += facts.saturated;
    int32_t* tables = scratch.tables + r * kChunkBlocks * kTableSize;
    for (int i = 0; i < blocks; ++i) build_tables(scratch.grid + i * kBlock, tables + i * kTableSize);
  }
}

template <int kRows>
void add_rows(const RademacherSlice& slice, int blocks, const Scratch& scratch, int32_t* partial) {
  const int64_t outputs = slice.tiles() * kTile;
  for (int64_t group = 0; group < outputs / kGroup; ++group) {
    add_group<kRows>(scratch.words + group * kChunkBlocks * kGroupWords, scratch.tables, blocks,
                     partial + group * kGroup, outputs);
  }
}

void add_rows(int rows, const RademacherSlice& slice, int blocks, const Scratch& scratch, int32_t* partial) {
#if defined(__AVX512F__) || defined(__AVX2__)
  if (rows == 4) return add_rows<4>(slice, blocks, scratch, partial);
  if (rows == 3) return add_rows<3>(slice, blocks, scratch, partial);
  if (rows == 2) return add_rows<2>(slice, blocks, scratch, partial);
#endif
  (void)rows;
  add_rows<1>(slice, blocks, scratch, partial);
}

void accumulate(const RademacherJob& job, const RademacherSlice& slice, const RademacherSpace& space) {
  const Scratch scratch = divide(space.scratch);
  const int64_t outputs = slice.tiles() * kTile;
  const int rows = static_cast<int>(slice.rows.end - slice.rows.begin);
  for (int64_t block = slice.blocks.begin; block < slice.blocks.end; block += kChunkBlocks) {
    const int64_t left = slice.blocks.end - block;
    const int blocks = left < kChunkBlocks ? static_cast<int>(left) : kChunkBlocks;
    for (int64_t group = 0; group < outputs / kGroup; ++group) {
      for (int i = 0; i < blocks; ++i) {
        draw_signs(job, block + i, slice.outputs.begin + group * kGroup,
                   scratch.words + (group * kChunkBlocks + i) * kGroupWords);
      }
    }
    for (int row = 0; row < rows; row += kRowsAtOnce) {
      const int some = rows - row < kRowsAtOnce ? rows - row : kRowsAtOnce;
      load_tables(job, slice.rows.begin + row, some, block, blocks, scratch, space.not_finite + row,
                  space.saturated + row);
      add_rows(some, slice, blocks, scratch, space.partial + row * outputs);
    }
  }
}

}  // namespace

const RademacherKernel DATAFLEX_RADEMACHER = {scratch_bytes, accumulate, flush_row};

}  // namespace dataflex
