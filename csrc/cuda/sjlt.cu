// sjlt.h on CUDA: sums in shared memory, 32-bit integer atomics, one pass over the gradients.
//
// A warp takes 128 parameters (8 groups) of a few rows at a time. Its lanes draw the placements of 8 repetitions, one
// Philox call each, and pass them on by shuffles; a group's 16 lanes then add to 16 different banks. A sum that leaves
// the range of 32 bits sends 2^32 to the 64-bit total, so a block goes through its share of the parameters without
// ever emptying its sums.
#include "launch.h"
#include "loading.h"
#include "philox.h"

namespace dataflex::cuda {
namespace {

constexpr int kSteps = 4;  // of 32 parameters: a batch
constexpr int kBatch = kSteps * kWarpLanes;
constexpr int kRepetitions = 8;  // whose placements a warp holds at a time
constexpr int kCallsPerGroup = kRepetitions / 2;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
static_assert(kBatch / kLanes * kCallsPerGroup == kWarpLanes, "one call of the generator a lane");

// Where a group goes in one repetition.
struct Placement {
  int32_t output;  // of the segment's first position
  uint32_t shape;
};

// What a thread block adds up.
struct Share {
  int64_t first_row, rows;
  int32_t first_output, outputs;
  int64_t first_batch, end_batch;
};

__device__ Share share_of(int64_t index, const SjltJob& job, const SjltPlan& plan) {
  // Neighbours share the moments: rows come first.
  const int64_t row = index % plan.row_tiles * plan.rows;
  const int64_t output = index / plan.row_tiles % plan.windows * plan.window;
  const int64_t batch = index / plan.row_tiles / plan.windows * plan.batches_per_split;
  const int64_t rows = job.block.rows - row, outputs = job.dim - output, batches = plan.batches - batch;
  return {row,
          rows < plan.rows ? rows : plan.rows,
          static_cast<int32_t>(output),
          static_cast<int32_t>(outputs < plan.window ? outputs : plan.window),
          batch,
          batch + (batches < plan.batches_per_split ? batches : plan.batches_per_split)};
}

// Nibble m is the product of m and `lane` in GF(16).
__device__ uint64_t products_of(uint32_t lane) {
  uint64_t products = 0;
  for (uint32_t m = 1; m < 16; ++m) {
    uint32_t product = 0;
    for (int bit = 0; bit < 4; ++bit) product ^= (lane >> bit & 1u) * (m << bit);
    for (int bit = 6; bit >= 4; --bit) product ^= (product >> bit & 1u) * (0b10011u << (bit - 4));
    products |= uint64_t{product} << (4 * m);
  }
  return products;
}

__device__ Placement make_placement(const SjltJob& job, int j, uint32_t place, uint32_t shape) {
  const int32_t outputs = job.dim / job.sparsity;
  const uint32_t segment = static_cast<uint32_t>(uint64_t{place} * static_cast<uint32_t>(outputs / kLanes) >> 32);
  return {j * outputs + static_cast<int32_t>(segment) * kLanes, shape};
}

// The placements of a batch in repetitions first .. first + 7: lane 4 * group + pair holds two of them.
__device__ void draw(const SjltJob& job, int64_t first_group, int first, Placement (&placements)[2]) {
  const uint32_t lane = threadIdx.x % kWarpLanes;
  const uint64_t group = static_cast<uint64_t>(first_group) + lane / kCallsPerGroup;
  const int pair = first / 2 + static_cast<int>(lane % kCallsPerGroup);
  Words<1> words{{{static_cast<uint32_t>(group)},
                  {static_cast<uint32_t>(group >> 32)},
                  {static_cast<uint32_t>(pair)},
                  {kSjltDomain}}};
  philox4x32(words, static_cast<uint32_t>(job.seed), static_cast<uint32_t>(job.seed >> 32));
  placements[0] = make_placement(job, 2 * pair, words.at[0][0], words.at[1][0]);
  placements[1] = make_placement(job, 2 * pair + 1, words.at[2][0], words.at[3][0]);
}

// What a thread has noticed of its rows.
template <int kRows>
struct Notes {
  bool broken[kRows];
  int saturated[kRows];
};

// grid[step][row] = the integer of parameter first + 32 * step + lane; 0 outside the block and the rows.
template <int kRows>
__device__ void load_batch(const SjltJob& job, const Share& share, int64_t first, Notes<kRows>& notes,
                           int32_t (&grid)[kSteps][kRows]) {
  const Gradients& block = job.block;
  const int64_t column = first - block.offset + threadIdx.x % kWarpLanes;
  ColumnMoments<kSteps> moments;
  moments.load(block, column, kWarpLanes);
  float values[kSteps * kRows];
  const auto at = [&](int i) {
    const int64_t here = column + i / kRows * kWarpLanes;
    const bool inside = here >= 0 && here < block.count && i % kRows < share.rows;
    return inside ? (share.first_row + i % kRows) * block.row_stride + here : int64_t{-1};
  };
  widen(block, values, at);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const float scale = row < share.rows ? power_of_two(job.exponents[share.first_row + row]) : 0.0f;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      grid[step][row] = 0;
      if (at(step * kRows + row) < 0) continue;
      const Value value =
          value_of(block.adam, values[step * kRows + row], moments.exp_avg[step], moments.exp_avg_sq[step]);
      notes.broken[row] |= !value.finite;
      grid[step][row] = on_grid(value.u, scale, kSjltLimit, notes.saturated[row]);
    }
  }
}

// *partial += value in 32 bits; what they cannot hold goes to the total.
__device__ __forceinline__ void add_with_carry(int32_t* partial, int32_t value, int64_t* total) {
  const int32_t before = atomicAdd(partial, value);
  const int32_t after = static_cast<int32_t>(static_cast<uint32_t>(before) + static_cast<uint32_t>(value));
  if (((before ^ after) & (value ^ after)) < 0) {
    add_to_total(total, value < 0 ? -(int64_t{1} << 32) : int64_t{1} << 32);
  }
}

// Adds a batch to the sums in the repetitions that the lanes of the warp hold the placements of.
template <int kRows>
__device__ void scatter(const SjltJob& job, const Share& share, int repetitions, uint64_t products,
                        const Placement (&placements)[2], const int32_t (&grid)[kSteps][kRows], int32_t* partial,
                        int64_t* sums) {
  const int lane = static_cast<int>(threadIdx.x % kWarpLanes);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int group = 2 * step + lane / kLanes;
#pragma unroll
    for (int j = 0; j < kRepetitions; ++j) {
      if (j >= repetitions) break;
      const int holder = group * kCallsPerGroup + j / 2;
      const int32_t output = __shfl_sync(kAllLanes, placements[j % 2].output, holder);
      const uint32_t shape = __shfl_sync(kAllLanes, placements[j % 2].shape, holder);
      const uint32_t multiplier = 1 + ((shape >> 20) * 15 >> 12);
      const uint32_t position = static_cast<uint32_t>(products >> (4 * multiplier) & 15u) ^ (shape >> 16 & 15u);
      const int32_t here = output + static_cast<int32_t>(position) - share.first_output;
      if (here < 0 || here >= share.outputs) continue;
      const int32_t sign = -static_cast<int32_t>(shape >> (lane % kLanes) & 1u);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (row >= share.rows) break;
        add_with_carry(partial + row * share.outputs + here, (grid[step][row] ^ sign) - sign,
                       sums + row * job.dim + here);
      }
    }
  }
}

template <int kRows>
__device__ void report(const Notes<kRows>& notes, const Share& share, const Totals& totals) {
  if (share.first_output != 0) return;  // the block of the first window has seen the same
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (notes.broken[row]) set_flag(totals.not_finite + share.first_row + row);
    if (notes.saturated[row] > 0) add_to_total(totals.saturated + share.first_row + row, notes.saturated[row]);
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 2) add_rows(const SjltJob job, const Totals totals, const SjltPlan plan) {
  int32_t* partial = dynamic_shared<int32_t>();  // (rows, outputs)
  const Share share = share_of(blockIdx.x, job, plan);
  int64_t* sums = totals.sums + share.first_row * job.dim + share.first_output;
  const int size = static_cast<int>(share.rows) * share.outputs;
  for (int i = threadIdx.x; i < size; i += kThreads) partial[i] = 0;
  __syncthreads();

  const uint64_t products = products_of(threadIdx.x % kLanes);
  Notes<kRows> notes{};
  for (int64_t batch = share.first_batch + threadIdx.x / kWarpLanes; batch < share.end_batch; batch += kWarps) {
    const int64_t first = (job.block.offset / kLanes + batch * (kBatch / kLanes)) * kLanes;
    int32_t grid[kSteps][kRows];
    load_batch<kRows>(job, share, first, notes, grid);
    for (int j = 0; j < job.sparsity; j += kRepetitions) {
      Placement placements[2];
      draw(job, first / kLanes, j, placements);
      scatter<kRows>(job, share, job.sparsity - j, products, placements, grid, partial, sums);
    }
  }
  report<kRows>(notes, share, totals);

  __syncthreads();
  for (int i = threadIdx.x; i < size; i += kThreads) {
    if (partial[i] != 0) add_to_total(sums + i / share.outputs * int64_t{job.dim} + i % share.outputs, partial[i]);
  }
}

}  // namespace

void sjlt_accumulate(const SjltJob& job, const Totals& totals, const Queue& queue) {
  if (job.block.rows == 0 || job.block.count == 0) return;
  const DeviceGuard guard(queue.device);
  const SjltPlan plan = plan_sjlt(job.block, job.dim, multiprocessors(queue.device));
  const auto kernel = plan.rows == 1 ? add_rows<1> : plan.rows == 2 ? add_rows<2> : add_rows<4>;
  launch(kernel, plan.blocks(), plan.shared_bytes(), queue, job, totals, plan);
}

}  // namespace dataflex::cuda
