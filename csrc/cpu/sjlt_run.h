// What the dispatcher (sjlt.cpp) and the implementations (sjlt_run.inl, one object file an instruction set) share.
#pragma once

#include <stdint.h>

#include "range.h"
#include "sjlt.h"

namespace dataflex {

// A chunk shares its draw among the rows, and its 32-bit sums are added to the totals at its end: long, because that
// costs as much as normalising some 4000 values (at 4096 outputs), but its moments and placements (384 KiB at sparsity
// 8) stay in the second-level cache.
constexpr int kChunkGroups = 2048;
// 255 values of the grid (|q| <= 2^23) add up in 32 bits. A group adds at most one to an output; a chunk of so many
// groups that the fullest segment gets more is emptied in between.
constexpr int kMostAdded = 255;
constexpr int kPieceGroups = 64;  // put on the grid, then scattered, while in the first-level cache
constexpr int kRowsAtOnce = 4;    // share the reading of placements
constexpr int kPiece = kPieceGroups * kLanes;

// Where one group of parameters goes in one repetition.
struct Placement {
  int32_t output;        // of the segment's first position
  uint16_t negative;     // one bit a lane
  uint16_t permutation;  // row of the position table: 16 * (multiplier - 1) + shift
};

// Buffers of one worker.
struct Workspace {
  Placement* placements;  // (sparsity, kChunkGroups)
  int32_t* fill;          // (dim / kLanes): groups of a chunk in each segment
  int32_t* grid;          // (kRowsAtOnce, kPiece), 64-byte aligned
  int32_t* partial;       // (kRowsAtOnce) times (dim) at a distance of stride, 64-byte aligned, zero between chunks
  int64_t stride;         // not a multiple of 4 KiB: processors take loads and stores that far apart for dependent
};

// Adds the share of `rows` and of `groups` (absolute group numbers) to the totals.
using SjltRun = void (*)(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);

void sjlt_run_portable(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
#ifdef DATAFLEX_X86
void sjlt_run_avx2(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
void sjlt_run_avx512(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
#endif

}  // namespace dataflex
