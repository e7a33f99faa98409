#include "plan.h"

#include <algorithm>

#include "dots.h"
#include "sjlt.h"

namespace dataflex::cuda {
namespace {

// sjlt: 64 KiB of sums and at most 128 registers a thread: two blocks share a multiprocessor of sm_80 or sm_90.
constexpr int32_t kWindowOutputs = 16384;
constexpr int kMaxRows = 4;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int64_t kBatchGroups = 8;
constexpr int64_t kMinBatches = 4 * kWarps;  // 4096 parameters: a block ends with one 64-bit addition an output

// rademacher
constexpr int64_t kSpanParameters = 128;
constexpr int64_t kSpanRowTileBytes = 8 * kSpanParameters * 2;

// gaussian
constexpr int64_t kStepParameters = 32;
constexpr int64_t kBlocksWanted = 512;  // enough for the largest devices; 8 MiB of partial sums
constexpr int64_t kMinSteps = 32;

// dots
constexpr int64_t kDotsRows = 4, kDotsDirections = 8;
constexpr int64_t kWarpsWanted = 8;  // a multiprocessor: fewer hide no latency

}  // namespace

SjltPlan plan_sjlt(const Gradients& block, int32_t dim, int multiprocessors) {
  SjltPlan plan{};
  plan.window = std::min(dim, kWindowOutputs);
  plan.rows = 1;
  while (plan.rows < kMaxRows && plan.rows < block.rows && 2 * plan.rows * plan.window <= kWindowOutputs) {
    plan.rows *= 2;
  }
  plan.row_tiles = divide_up(block.rows, plan.rows);
  plan.windows = divide_up(dim, plan.window);
  const int64_t first_group = block.offset / kLanes;
  const int64_t groups = divide_up(block.offset + block.count, kLanes) - first_group;
  plan.batches = divide_up(groups, kBatchGroups);
  const int64_t wanted = int64_t{kBlocksPerMultiprocessor} * multiprocessors / (plan.row_tiles * plan.windows);
  const int64_t splits = std::max<int64_t>(1, std::min(wanted, plan.batches / kMinBatches));
  plan.batches_per_split = divide_up(plan.batches, splits);
  plan.splits = divide_up(plan.batches, plan.batches_per_split);
  return plan;
}

RademacherPlan plan_rademacher(int64_t rows, int64_t offset, int64_t count, int32_t dim, int multiprocessors,
                               int64_t packed_bytes) {
  RademacherPlan plan{};
  plan.row_tiles = rows <= 8 ? 1 : rows <= 16 ? 2 : 4;
  plan.spans = divide_up(offset + count, kSpanParameters) - offset / kSpanParameters;
  plan.chunk_spans = std::min(plan.spans, packed_bytes / (plan.row_tiles * kSpanRowTileBytes));
  plan.output_tiles = divide_up(dim, 256 * sets_of(plan.row_tiles));
  // One block a multiprocessor, all of them at once: the work of blocks is alike.
  plan.splits = std::max<int64_t>(1, std::min(multiprocessors / plan.output_tiles, plan.chunk_spans));
  return plan;
}

int64_t RademacherPlan::packed_bytes() const { return chunk_spans * row_tiles * kSpanRowTileBytes; }

int64_t RademacherPlan::workspace_bytes() const { return packed_bytes() + 8 * row_tiles * 8; }

GaussianPlan plan_gaussian(int64_t rows, int64_t offset, int64_t count, int32_t dim) {
  GaussianPlan plan{};
  if (rows == 0 || count == 0) return plan;
  plan.row_tiles = divide_up(rows, 32);
  plan.output_tiles = divide_up(dim, 64);
  plan.steps = divide_up(offset + count, kStepParameters) - offset / kStepParameters;
  const int64_t wanted = std::min(kBlocksWanted / (plan.row_tiles * plan.output_tiles), plan.steps / kMinSteps);
  plan.steps_per_split = divide_up(plan.steps, std::max<int64_t>(1, wanted));
  plan.splits = divide_up(plan.steps, plan.steps_per_split);
  plan.partial_sums = plan.splits * rows * dim;
  return plan;
}

DotsPlan plan_dots(int64_t rows, int64_t count, int32_t number, int multiprocessors, int64_t partial_bytes) {
  DotsPlan plan{};
  if (rows == 0 || count == 0) return plan;
  const int64_t width = 1 + int64_t{number};
  plan.pieces = std::min(divide_up(count, kPiece), std::max<int64_t>(1, partial_bytes / 8 / (rows * width)));
  plan.partial_sums = plan.pieces * rows * width;
  plan.directions = number <= 1 ? 1 : kDotsDirections;
  plan.direction_tiles = std::max<int64_t>(1, divide_up(number, plan.directions));
  const int64_t tiles = divide_up(rows, kDotsRows) * plan.direction_tiles * plan.pieces;
  plan.rows = rows > 1 && tiles >= kWarpsWanted * multiprocessors ? kDotsRows : 1;
  plan.row_tiles = divide_up(rows, plan.rows);
  return plan;
}

}  // namespace dataflex::cuda
