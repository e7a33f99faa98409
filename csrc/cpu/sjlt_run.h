// What the dispatcher (sjlt.cpp) and the implementations (sjlt_run.inl, one object file an instruction set) share.
#pragma once

#include <stdint.h>

#include "range.h"
#include "sjlt.h"

namespace dataflex {

// 255 values of the grid (|q| <= 2^23) add up in 32 bits, and a chunk adds at most one value a group to an output.
constexpr int kChunkGroups = 240;
constexpr int kChunk = kChunkGroups * kLanes;

// Where one group of parameters goes in one repetition.
struct Placement {
  int32_t output;        // of the segment's first position
  uint16_t negative;     // one bit a lane
  uint16_t permutation;  // row of the position table: 16 * (multiplier - 1) + shift
};

// Buffers of one worker.
struct Workspace {
  Placement* placements;  // (kChunkGroups, sparsity)
  float* values;          // (kChunk)
  int32_t* grid;          // (kChunk), 64-byte aligned
  int32_t* partial;       // (dim), 64-byte aligned, zero between chunks
};

// Adds the share of `rows` and of `groups` (absolute group numbers) to `result`.
using SjltRun = void (*)(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);

void sjlt_run_portable(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
#ifdef DATAFLEX_X86
void sjlt_run_avx2(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
void sjlt_run_avx512(const SjltJob&, Range rows, Range groups, const Totals&, const Workspace&);
#endif

}  // namespace dataflex
