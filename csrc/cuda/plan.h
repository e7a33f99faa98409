// Which part of a job each thread block does, and how much memory that takes: plain arithmetic, tested without a GPU.
#pragma once

#include <stdint.h>

#include "gradients.h"
#include "platform.h"

namespace dataflex::cuda {

constexpr int kThreads = 256;  // of a block, in every kernel
constexpr int kWarpLanes = 32;
constexpr int kWarps = kThreads / kWarpLanes;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A block adds `rows` rows into a window of the outputs, over one of `splits` parts of the parameters. Batches are 128
// consecutive parameters, which one warp takes at a time; the first begins at the 16 parameters (group) of the offset.
struct SjltPlan {
  int rows;        // of a tile: 1, 2 or 4
  int32_t window;  // outputs of a tile, a multiple of 16
  int64_t row_tiles, windows, splits;
  int64_t batches, batches_per_split;

  int64_t blocks() const { return row_tiles * windows * splits; }
  int64_t shared_bytes() const { return int64_t{rows} * window * 4; }
};

SjltPlan plan_sjlt(const Gradients& block, int32_t dim, int multiprocessors);

// Sets of 32 outputs that a warp multiplies with so many tiles of 8 rows: at most 128 sums a lane.
DATAFLEX_INLINE constexpr int sets_of(int row_tiles) { return row_tiles == 4 ? 2 : 4; }

// Up to 32 rows at a time are packed as bytes (workspace), a chunk of the parameters at a time, and multiplied. A
// thread block multiplies 256 * sets_of(row_tiles) outputs over one of `splits` parts of the chunk. Spans are the 128
// parameters at a multiple of 128 whose signs one call of the generator gives.
struct RademacherPlan {
  int row_tiles;  // of 8 rows: 1, 2 or 4
  int64_t spans, chunk_spans;
  int64_t output_tiles, splits;  // of a full chunk

  int64_t packed_bytes() const;
  int64_t workspace_bytes() const;
};

RademacherPlan plan_rademacher(int64_t rows, int64_t offset, int64_t count, int32_t dim, int multiprocessors,
                               int64_t packed_bytes);

// A block adds 32 rows and 64 outputs over one of `splits` parts of the parameters, which depend on the sizes alone:
// the same sums on every device of one kind.
struct GaussianPlan {
  int64_t row_tiles, output_tiles, splits;
  int64_t steps, steps_per_split;  // of 32 parameters at a multiple of 32
  int64_t partial_sums;            // (splits, rows, dim)

  int64_t blocks() const { return row_tiles * output_tiles * splits; }
  int64_t workspace_bytes() const { return partial_sums * 8; }
};

GaussianPlan plan_gaussian(int64_t rows, int64_t offset, int64_t count, int32_t dim);

// A warp sums one piece of `rows` rows with themselves and `directions` directions; as many pieces at a time as the
// workspace has partial sums for. Only `rows` depends on the device, and no sum depends on `rows`.
struct DotsPlan {
  int rows;        // of a tile: 1 or 4
  int directions;  // of a tile: 1 or 8
  int64_t row_tiles, direction_tiles;
  int64_t pieces;        // at a time
  int64_t partial_sums;  // (pieces, rows, 1 + number)

  DATAFLEX_INLINE int64_t warps() const { return row_tiles * direction_tiles * pieces; }
  int64_t workspace_bytes() const { return partial_sums * 8; }
};

DotsPlan plan_dots(int64_t rows, int64_t count, int32_t number, int multiprocessors, int64_t partial_bytes);

// Multiprocessors of a device.
int multiprocessors(int device);

}  // namespace dataflex::cuda
