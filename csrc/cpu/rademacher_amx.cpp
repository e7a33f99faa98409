// rademacher.h on integer matrix units (Intel AMX, 8-bit tiles): q = 256 * high + low, signed high and unsigned low
// bytes, times bytes of +-1.
//
// A half of a block is 64 parameters: in the 8 x 16 matrix, rows 4 half .. + 3. The 16 columns e = 4 t + c, of four
// parameters each, are the 16 dwords of a tile row of values (one a gradient row), and the 16 rows of a tile of signs,
// whose columns are 16 outputs: dword (e, output) is four bytes named by nibble (c, half) of word t.
#include <stdint.h>
#include <string.h>

#include "chunk.h"
#include "intrinsics.h"
#include "rademacher_run.h"
#include "rademacher_signs.h"

namespace dataflex {
namespace {

constexpr int kGroup = 4 * kPhiloxLanes;  // outputs
constexpr int kGroupWords = 4 * kGroup;   // of one block
constexpr int kChunkBlocks = 8;
constexpr int kHalves = 2 * kChunkBlocks;  // tiles along the parameters
constexpr int kTileRows = 16, kTileBytes = 1024;
constexpr int kRowTiles = kSliceRows / kTileRows;

struct Scratch {
  alignas(64) int8_t high[kRowTiles][kHalves][kTileBytes];
  alignas(64) uint8_t low[kRowTiles][kHalves][kTileBytes];
  alignas(64) int8_t signs[kHalves][4][kTileBytes];  // of one group: tiles of 16 outputs, in the order of word vectors
  alignas(64) uint32_t words[kChunkBlocks][kGroupWords];
  alignas(64) int32_t grid[kChunkBlocks * kBlock];
  alignas(64) int32_t high_sums[2][kTileRows][16], low_sums[2][kTileRows][16];
};

size_t scratch_bytes(const RademacherSlice&) { return sizeof(Scratch); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Byte `byte` of the four rows of half a block, one dword a column.
inline __m512i interleave(const int32_t* rows, int byte) {
  __m512i dwords = _mm512_setzero_si512();
  for (int s = 3; s >= 0; --s) {
    const __m512i shifted = _mm512_srli_epi32(_mm512_load_si512(rows + 16 * s), 8 * byte);
    dwords = _mm512_or_si512(_mm512_slli_epi32(dwords, 8), _mm512_and_si512(shifted, _mm512_set1_epi32(255)));
  }
  return dwords;
}

void load_row(const RademacherJob& job, const RademacherSlice& slice, int row, int64_t block, int blocks,
              Scratch& scratch, const RademacherSpace& space) {
  const int64_t source = slice.rows.begin + row;
  const GridFacts facts = load_grid(job.block, source, block * kBlock, blocks * kBlock, job.exponents[source],
                                    kRademacherLimit, scratch.grid);
  if (facts.broken > 0) space.not_finite[row] = 1;
  space.saturated[row] += facts.saturated;
  const int tile = row / kTileRows, byte = row % kTileRows * 64;
  for (int half = 0; half < 2 * blocks; ++half) {
    _mm512_store_si512(scratch.high[tile][half] + byte, interleave(scratch.grid + 64 * half, 1));
    _mm512_store_si512(scratch.low[tile][half] + byte, interleave(scratch.grid + 64 * half, 0));
  }
}

// The tiles of signs of a group of outputs.
void expand(const RademacherJob& job, int64_t output, int64_t block, int blocks, Scratch& scratch) {
  alignas(64) int8_t patterns[16][4];
  for (int n = 0; n < 16; ++n) {
    for (int s = 0; s < 4; ++s) patterns[n][s] = n >> s & 1 ? -1 : 1;
  }
  const __m512i table = _mm512_load_si512(patterns);
  for (int b = 0; b < blocks; ++b) {
    draw_signs(job, block + b, output, scratch.words[b]);
    for (int t = 0; t < 4; ++t) {
      for (int i = 0; i < 4; ++i) {
        __m512i indices = _mm512_load_si512(scratch.words[b] + (t * 4 + i) * 16);
        for (int nibble = 0; nibble < 8; ++nibble) {
          int8_t* row = scratch.signs[2 * b + nibble % 2][i] + (4 * t + nibble / 2) * 64;
          _mm512_store_si512(row, _mm512_permutexvar_epi32(indices, table));
          indices = _mm512_srli_epi32(indices, 4);
        }
      }
    }
  }
}

// Adds 16 rows times two tiles of 16 outputs, i and i + 1.
void multiply(int tile, int i, int halves, int rows, Scratch& scratch, int32_t* partial, int64_t row_stride) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int half = 0; half < halves; ++half) {
    _tile_loadd(4, scratch.high[tile][half], 64);
    _tile_loadd(6, scratch.signs[half][i], 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, scratch.signs[half][i + 1], 64);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, scratch.low[tile][half], 64);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, scratch.high_sums[0], 64);
  _tile_stored(1, scratch.high_sums[1], 64);
  _tile_stored(2, scratch.low_sums[0], 64);
  _tile_stored(3, scratch.low_sums[1], 64);
  for (int row = 0; row < rows; ++row) {
    for (int n = 0; n < 2; ++n) {
      int32_t* target = partial + row * row_stride + 16 * (i + n);
      const __m512i high = _mm512_slli_epi32(_mm512_load_si512(scratch.high_sums[n][row]), 8);
      const __m512i sum = _mm512_add_epi32(high, _mm512_load_si512(scratch.low_sums[n][row]));
      _mm512_store_si512(target, _mm512_add_epi32(_mm512_load_si512(target), sum));
    }
  }
}

void accumulate(const RademacherJob& job, const RademacherSlice& slice, const RademacherSpace& space) {
  Scratch& scratch = *static_cast<Scratch*>(space.scratch);
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t outputs = slice.tiles() * kTile;
  const int rows = static_cast<int>(slice.rows.end - slice.rows.begin);
  for (int64_t block = slice.blocks.begin; block < slice.blocks.end; block += kChunkBlocks) {
    const int64_t left = slice.blocks.end - block;
    const int blocks = left < kChunkBlocks ? static_cast<int>(left) : kChunkBlocks;
    for (int row = 0; row < rows; ++row) load_row(job, slice, row, block, blocks, scratch, space);
    for (int64_t output = 0; output < outputs; output += kGroup) {
      expand(job, slice.outputs.begin + output, block, blocks, scratch);
      for (int first = 0; first < rows; first += kTileRows) {
        const int some = rows - first < kTileRows ? rows - first : kTileRows;
        for (int i = 0; i < 4; i += 2) {
          multiply(first / kTileRows, i, 2 * blocks, some, scratch, space.partial + first * outputs + output, outputs);
        }
      }
    }
  }
  _tile_release();
}

}  // namespace

const RademacherKernel kRademacherAmx = {scratch_bytes, accumulate, flush_row};

}  // namespace dataflex
