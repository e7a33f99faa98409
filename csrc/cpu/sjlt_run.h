// What the dispatcher (sjlt.cpp) and the implementations (sjlt_run.inl, one object file an instruction set) share.
#pragma once

#include <stdint.h>

#include "range.h"
#include "sjlt.h"

namespace dataflex {

// A chunk shares its draw among the rows. Long, because the sums of a row are added to its totals once a chunk; what is
// drawn (160 KiB at sparsity 8) and the moments (128 KiB) stay in the second-level cache.
constexpr int kChunkGroups = 1024;
constexpr int kMostAdded = 255;   // values of the grid (|q| <= 2^23) add up in 32 bits
constexpr int kPieceGroups = 64;  // that are put on the grid at once where loading and adding go one after the other

// Repetitions are drawn into words of four (sjlt_group.h).
constexpr int quads(int sparsity) { return (sparsity + 3) / 4; }

// Buffers of one worker.
struct Workspace {
  uint32_t* sources;  // (kChunkGroups, quads, kLanes), 64-byte aligned
  int32_t* outputs;   // (kChunkGroups, sparsity): where each group's segments begin
  uint16_t* hits;     // (dim / kLanes): how many groups of the chunk go to each segment
  int32_t* grid;      // (kPieceGroups, kLanes), 64-byte aligned
  int32_t* sums;      // (dim) of one row, 64-byte aligned, zeros between chunks
};

// Adds the share of `rows` and of `groups` (absolute group numbers) to the totals.
using SjltRun = void (*)(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);

void sjlt_run_portable(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
#ifdef DATAFLEX_X86
void sjlt_run_avx2(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
void sjlt_run_avx512(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
#endif

}  // namespace dataflex
