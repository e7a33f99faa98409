// What the dispatcher (rademacher.cpp) and the implementations (one object file an instruction set) share.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "rademacher.h"
#include "range.h"

namespace dataflex {

constexpr int kBlock = 128;              // parameters that one Philox call has signs for
constexpr int kTile = 64;                // outputs; slices start at multiples of it
constexpr int kSliceRows = 32;           // rows that share a draw of the signs
constexpr int kSliceOutputs = 4096;      // their 32-bit sums (512 KiB) stay in the second-level cache
constexpr int64_t kSpanBlocks = 1 << 9;  // 2^16 parameters: sums of values up to 2^15 - 1 fit 32 bits

// What one call adds up.
struct RademacherSlice {
  Range rows;     // at most kSliceRows
  Range outputs;  // at most kSliceOutputs
  Range blocks;   // absolute numbers of blocks of parameters, at most kSpanBlocks
  int64_t tiles() const { return (outputs.end - outputs.begin + kTile - 1) / kTile; }
};

// Buffers of one worker, results of one slice.
struct RademacherSpace {
  int32_t* partial;     // (rows, tiles, kTile), zero between calls; the implementation chooses the order in a tile
  void* scratch;        // (scratch_bytes), 64-byte aligned
  uint8_t* not_finite;  // (kSliceRows), set to 1
  int64_t* saturated;   // (kSliceRows), added to
};

struct RademacherKernel {
  size_t (*scratch_bytes)(const RademacherSlice&);
  // Adds the slice to `partial`.
  void (*accumulate)(const RademacherJob&, const RademacherSlice&, const RademacherSpace&);
  // Moves one row of `partial` to the slice's outputs of one row of sums.
  void (*flush)(const RademacherSlice&, int32_t* partial, int64_t* sums);
};

extern const RademacherKernel kRademacherPortable;
#ifdef DATAFLEX_X86
extern const RademacherKernel kRademacherAvx2, kRademacherAvx512, kRademacherAmx;
#endif

}  // namespace dataflex
