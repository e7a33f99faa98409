// dots.h on CUDA: a warp takes one piece of a few rows and directions, lane l of the warp is lane l of the piece.
//
// Everything is read once for all rows and directions of a warp, four steps of 32 columns at a time, and normalised in
// registers. The lanes are added by shuffles, whose tree is that of dots.h; every piece leaves a partial sum, and a
// second kernel adds them in order. Warps share nothing, so there are no barriers.
#include "launch.h"
#include "loading.h"
#include "partial.h"

namespace dataflex::cuda {
namespace {

constexpr int kSteps = 4;  // of 32 columns, whose loads are under way together
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
static_assert(kDotsLanes == kWarpLanes && kPiece % (kSteps * kWarpLanes) == 0, "a lane of a warp is a lane of a piece");

// What a warp adds up.
struct Share {
  int64_t piece, row;
  int32_t direction;
};

__device__ Share share_of(int64_t index, const DotsPlan& plan) {
  // Neighbours share moments and directions: rows come first.
  return {index / plan.row_tiles / plan.direction_tiles, index % plan.row_tiles * plan.rows,
          static_cast<int32_t>(index / plan.row_tiles % plan.direction_tiles * plan.directions)};
}

// values[i] = direction j's value in column column + 32 i; 0 outside the block and the directions.
__device__ void load_direction(const DotsJob& job, int64_t j, int64_t column, float (&values)[kSteps]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int64_t here = column + i * kWarpLanes;
    const bool inside = here < job.block.count && j < job.number;
    values[i] = inside ? job.directions[j * job.direction_stride + here] : 0.0f;
  }
}

// u[row][i] of column column + 32 i; 0 where it is not finite and outside the block and its rows.
template <int kRows>
__device__ void load_rows(const Gradients& block, int64_t first_row, int64_t column, bool (&broken)[kRows],
                          float (&u)[kRows][kSteps]) {
  ColumnMoments<kSteps> moments;
  moments.load(block, column, kWarpLanes);
  float values[kRows * kSteps];
  const auto at = [&](int i) {
    const int64_t row = first_row + i / kSteps, here = column + i % kSteps * kWarpLanes;
    return row < block.rows && here < block.count ? row * block.row_stride + here : int64_t{-1};
  };
  widen(block, values, at);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      u[row][i] = 0.0f;
      if (at(row * kSteps + i) < 0) continue;
      const Value value = value_of(block.adam, values[row * kSteps + i], moments.exp_avg[i], moments.exp_avg_sq[i]);
      broken[row] |= !value.finite;
      if (is_finite(value.u)) u[row][i] = value.u;
    }
  }
}

// The value of another lane.
__device__ __forceinline__ double from_lane(double value, int lane) {
  uint32_t words[2];
  memcpy(words, &value, sizeof value);
  words[0] = __shfl_sync(kAllLanes, words[0], lane);
  words[1] = __shfl_sync(kAllLanes, words[1], lane);
  memcpy(&value, words, sizeof value);
  return value;
}

// The sum of the lanes, in every lane: a + b = b + a, so that both halves of the warp have the same bits.
__device__ double tree_sum(double value) {
  const int lane = static_cast<int>(threadIdx.x % kWarpLanes);
#pragma unroll
  for (int half = kWarpLanes / 2; half > 0; half /= 2) value += from_lane(value, lane ^ half);
  return value;
}

// `partial` is (pieces, rows, 1 + number).
template <int kRows, int kDirections>
__global__ void __launch_bounds__(kThreads)
    sum_pieces(const DotsJob job, const DotsPlan plan, uint8_t* not_finite, double* partial) {
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpLanes;
  if (warp >= plan.warps()) return;
  const Share share = share_of(warp, plan);
  const int lane = static_cast<int>(threadIdx.x % kWarpLanes);
  const int64_t begin = share.piece * kPiece, left = job.block.count - begin;
  const int64_t end = begin + (left < kPiece ? left : kPiece);

  double squares[kRows] = {}, products[kRows][kDirections] = {};
  bool broken[kRows] = {};
  for (int64_t first = begin; first < end; first += kSteps * kWarpLanes) {
    float u[kRows][kSteps], q[kDirections][kSteps];
#pragma unroll
    for (int j = 0; j < kDirections; ++j) load_direction(job, share.direction + j, first + lane, q[j]);
    load_rows<kRows>(job.block, share.row, first + lane, broken, u);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const double value = u[row][i];
        squares[row] = fma(value, value, squares[row]);
#pragma unroll
        for (int j = 0; j < kDirections; ++j) {
          products[row][j] = fma(value, static_cast<double>(q[j][i]), products[row][j]);
        }
      }
    }
  }

#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const bool inside = share.row + row < job.block.rows;
    double* sums = partial + (share.piece * job.block.rows + share.row + row) * (1 + int64_t{job.number});
    const double square = tree_sum(squares[row]);
    if (inside && share.direction == 0 && lane == 0) sums[0] = square;
#pragma unroll
    for (int j = 0; j < kDirections; ++j) {
      const double product = tree_sum(products[row][j]);
      if (inside && share.direction + j < job.number && lane == 0) sums[1 + share.direction + j] = product;
    }
    if (broken[row]) set_flag(not_finite + share.row + row);
  }
}

}  // namespace

int64_t dots_workspace_bytes(const Gradients& block, int32_t number, int64_t partial_bytes) {
  return plan_dots(block.rows, block.count, number, 1, partial_bytes).workspace_bytes();
}

void dots_accumulate(const DotsJob& job, const DotsTotals& totals, void* workspace, const Queue& queue,
                     int64_t partial_bytes) {
  const Gradients& block = job.block;
  if (block.rows == 0 || block.count == 0) return;
  const DeviceGuard guard(queue.device);
  const int processors = multiprocessors(queue.device);
  double* partial = static_cast<double*>(workspace);
  const int64_t width = plan_dots(block.rows, block.count, job.number, processors, partial_bytes).pieces * kPiece;
  for (int64_t first = 0; first < block.count; first += width) {
    DotsJob part = job;
    part.block = slice(block, 0, block.rows, first, block.count - first < width ? block.count - first : width);
    part.directions += first;
    const DotsPlan plan = plan_dots(block.rows, part.block.count, job.number, processors, partial_bytes);
    const auto kernel = plan.rows == 1 ? (plan.directions == 1 ? sum_pieces<1, 1> : sum_pieces<1, 8>)
                                       : (plan.directions == 1 ? sum_pieces<4, 1> : sum_pieces<4, 8>);
    launch(kernel, divide_up(plan.warps(), kWarps), 0, queue, part, plan, totals.not_finite, partial);
    const int64_t count = block.rows * (1 + int64_t{job.number});
    launch(add_partial, divide_up(count, kThreads), 0, queue, partial, plan.pieces, count, totals.sums);
  }
}

}  // namespace dataflex::cuda
