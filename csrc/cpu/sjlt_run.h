// What the dispatcher (sjlt.cpp) and the implementations (sjlt_run.inl, one object file an instruction set) share.
#pragma once

#include <stdint.h>

#include "range.h"
#include "sjlt.h"

namespace dataflex {

// A chunk shares its draw among the rows. Long, because a segment's sums are added to the totals once a chunk; four
// grids (256 KiB) and the entries (64 KiB at sparsity 8) stay in the second-level cache.
constexpr int kChunkGroups = 1024;
constexpr int kMostAdded = 255;  // values of the grid (|q| <= 2^23) add up in 32 bits
constexpr int kRowsAtOnce = 4;   // share the reading of entries
// Not a multiple of 4 KiB: processors take loads and stores that far apart for dependent.
constexpr int kGridStride = kChunkGroups * kLanes + 17 * kLanes;

// What Philox says of one group in one repetition.
struct Draw {
  uint32_t segment;
  uint32_t shape;
};

// A group on its way to a segment.
struct Entry {
  uint16_t group;        // in the chunk
  uint16_t negative;     // one bit a lane
  uint16_t permutation;  // row of the position table: 16 * (multiplier - 1) + shift
};

// Buffers of one worker.
struct Workspace {
  Draw* draws;     // (sparsity, kChunkGroups)
  Entry* entries;  // (sparsity, kChunkGroups), by segment
  int32_t* ends;   // (dim / kLanes): where each segment's entries end
  int32_t* grid;   // (kRowsAtOnce, kGridStride), 64-byte aligned
};

// Adds the share of `rows` and of `groups` (absolute group numbers) to the totals.
using SjltRun = void (*)(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);

void sjlt_run_portable(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
#ifdef DATAFLEX_X86
void sjlt_run_avx2(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
void sjlt_run_avx512(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
#endif

}  // namespace dataflex
