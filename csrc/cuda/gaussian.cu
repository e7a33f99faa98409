// gaussian.h on CUDA: entries are made once in shared memory and used for 32 rows.
//
// A block adds 64 outputs and 32 rows, 32 parameters a step, in float32 within runs of at most 4096 parameters and in
// float64 beyond. The blocks that share the parameters write partial sums, which a second kernel adds in a fixed order:
// the same input gives the same bits every time.
#include "launch.h"
#include "loading.h"
#include "normal.h"
#include "partial.h"
#include "philox.h"

namespace dataflex::cuda {
namespace {

constexpr int kRows = 32, kOutputs = 64, kColumns = 32;  // of a step
constexpr int kRowsOfThread = kRows * kOutputs / kThreads;
constexpr int kStepsOfRun = 4096 / kColumns;
static_assert(kRowsOfThread == 8, "a thread reads its rows as two float4");

struct Step {
  float entries[kColumns][kOutputs];
  float values[kColumns][kRows + 4];  // rows of 144 bytes: stores of a column spread over the banks
};

struct Share {
  int64_t row, first_step, end_step, split;
  int32_t output;
};

__device__ Share share_of(int64_t index, const GaussianPlan& plan) {
  const int64_t row_tile = index % plan.row_tiles, output_tile = index / plan.row_tiles % plan.output_tiles;
  const int64_t split = index / plan.row_tiles / plan.output_tiles;
  const int64_t first = split * plan.steps_per_split, end = first + plan.steps_per_split;
  return {row_tile * kRows, first, end < plan.steps ? end : plan.steps, split,
          static_cast<int32_t>(output_tile * kOutputs)};
}

// The entries of P' of 32 parameters, the first a multiple of 32, in 64 outputs.
__device__ void make_entries(const GaussianJob& job, int64_t parameter, int32_t output, Step& step) {
  for (int i = threadIdx.x; i < kColumns / 4 * kOutputs; i += kThreads) {
    const uint64_t block = static_cast<uint64_t>(parameter) / 4 + i / kOutputs;
    Words<1> words{{{static_cast<uint32_t>(block)},
                    {static_cast<uint32_t>(block >> 32)},
                    {static_cast<uint32_t>(output + i % kOutputs)},
                    {kGaussianDomain}}};
    philox4x32(words, static_cast<uint32_t>(job.seed), static_cast<uint32_t>(job.seed >> 32));
    const NormalPair first = normal_pair(words.at[0][0], words.at[1][0]);
    const NormalPair second = normal_pair(words.at[2][0], words.at[3][0]);
    float (*entries)[kOutputs] = step.entries + i / kOutputs * 4;
    entries[0][i % kOutputs] = first.even;
    entries[1][i % kOutputs] = first.odd;
    entries[2][i % kOutputs] = second.even;
    entries[3][i % kOutputs] = second.odd;
  }
}

// The values of 32 rows in 32 columns; 0 outside the block. The blocks of the first outputs flag what is not finite.
__device__ void load_values(const GaussianJob& job, const Share& share, int64_t first_column, uint8_t* not_finite,
                            Step& step) {
  constexpr int kLoads = kRows / kWarps;
  const Gradients& block = job.block;
  const int lane = static_cast<int>(threadIdx.x % kWarpLanes), warp = static_cast<int>(threadIdx.x / kWarpLanes);
  const int64_t column = first_column + lane;
  ColumnMoments<1> moments;
  moments.load(block, column, 1);
  const auto at = [&](int i) {
    const int64_t row = share.row + warp + i * kWarps;
    const bool inside = column >= 0 && column < block.count && row < block.rows;
    return inside ? row * block.row_stride + column : int64_t{-1};
  };
  float values[kLoads];
  widen(block, values, at);
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int row = warp + i * kWarps;
    step.values[lane][row] = 0.0f;
    if (at(i) < 0) continue;
    const Value value = value_of(block.adam, values[i], moments.exp_avg[0], moments.exp_avg_sq[0]);
    if (value.finite) step.values[lane][row] = value.u;
    if (!value.finite && share.output == 0) set_flag(not_finite + share.row + row);
  }
}

__device__ void multiply_step(const Step& step, int output, int row, float (&sums)[kRowsOfThread]) {
#pragma unroll 8
  for (int column = 0; column < kColumns; ++column) {
    const float entry = step.entries[column][output];
    const float4* rows = reinterpret_cast<const float4*>(&step.values[column][row]);
    const float4 low = rows[0], high = rows[1];
    sums[0] = fmaf(entry, low.x, sums[0]);
    sums[1] = fmaf(entry, low.y, sums[1]);
    sums[2] = fmaf(entry, low.z, sums[2]);
    sums[3] = fmaf(entry, low.w, sums[3]);
    sums[4] = fmaf(entry, high.x, sums[4]);
    sums[5] = fmaf(entry, high.y, sums[5]);
    sums[6] = fmaf(entry, high.z, sums[6]);
    sums[7] = fmaf(entry, high.w, sums[7]);
  }
}

__device__ void end_run(float (&run)[kRowsOfThread], double (&sums)[kRowsOfThread]) {
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    sums[i] += run[i];
    run[i] = 0.0f;
  }
}

// `partial` is (splits, rows, dim).
__global__ void __launch_bounds__(kThreads)
    multiply(const GaussianJob job, const GaussianPlan plan, uint8_t* not_finite, double* partial) {
  Step& step = *dynamic_shared<Step>();
  const Share share = share_of(blockIdx.x, plan);
  const int output = static_cast<int>(threadIdx.x) % kOutputs;
  const int row = static_cast<int>(threadIdx.x) / kOutputs * kRowsOfThread;
  float run[kRowsOfThread] = {};
  double sums[kRowsOfThread] = {};
  for (int64_t i = share.first_step; i < share.end_step; ++i) {
    const int64_t parameter = (job.block.offset / kColumns + i) * kColumns;
    make_entries(job, parameter, share.output, step);
    load_values(job, share, parameter - job.block.offset, not_finite, step);
    __syncthreads();
    multiply_step(step, output, row, run);
    if ((i - share.first_step) % kStepsOfRun == kStepsOfRun - 1) end_run(run, sums);
    __syncthreads();
  }
  end_run(run, sums);
  if (share.output + output >= job.dim) return;
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    if (share.row + row + i >= job.block.rows) break;
    const int64_t at = (share.split * job.block.rows + share.row + row + i) * job.dim + share.output + output;
    partial[at] = sums[i];
  }
}

}  // namespace

int64_t gaussian_workspace_bytes(const Gradients& block, int32_t dim) {
  return plan_gaussian(block.rows, block.offset, block.count, dim).workspace_bytes();
}

void gaussian_accumulate(const GaussianJob& job, const GaussianTotals& totals, void* workspace, const Queue& queue) {
  if (job.block.rows == 0 || job.block.count == 0) return;
  const DeviceGuard guard(queue.device);
  const GaussianPlan plan = plan_gaussian(job.block.rows, job.block.offset, job.block.count, job.dim);
  double* partial = static_cast<double*>(workspace);
  launch(multiply, plan.blocks(), sizeof(Step), queue, job, plan, totals.not_finite, partial);
  const int64_t count = job.block.rows * job.dim;
  launch(add_partial, divide_up(count, kThreads), 0, queue, partial, plan.splits, count, totals.sums);
}

}  // namespace dataflex::cuda
