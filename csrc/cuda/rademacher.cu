// rademacher.h on CUDA: integer tensor cores, mma.m16n8k32 with 8-bit operands.
//
// q = 256 high + low, high a signed and low an unsigned byte. With the sign bits s (1: negative) as operand A,
//   sum of +-q = sum q - 2 (256 sum s high + sum s low).
// A first kernel puts a chunk of parameters on the grid and packs the bytes in the order in which the lanes of a warp
// hold operand B; a second one builds the sign bits in registers, one Philox call a lane for 32 outputs and 128
// parameters (a span), and multiplies.
#include "launch.h"
#include "loading.h"
#include "philox.h"

namespace dataflex::cuda {
namespace {

constexpr int kSpan = 128;    // parameters
constexpr int kTileRows = 8;  // rows of gradients that one instruction multiplies
constexpr int kQuads = 4;     // packed words (4 parameters each) of a lane in half a span
constexpr int kPlaneWords = kSpan * kTileRows / 4;
constexpr int kTileWords = 2 * kPlaneWords;  // high bytes, low bytes
constexpr int kMaxTiles = 4;
constexpr int kSetOutputs = 32;  // of one Philox call
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Word of the parameters 32 c + 16 h + 4 t .. + 3 of a span in row g of a tile, within the plane of its high or low
// bytes: each half of a span is four words a lane (4 g + t), which a lane reads at once.
__device__ int word_in_plane(int g, int t, int c, int h) {
  return ((c / 2 * kWarpLanes) + 4 * g + t) * kQuads + c % 2 * 2 + h;
}

// Sums of a thread block's 1024 parameters, a row each.
struct RowNotes {
  int32_t sums[kMaxTiles * kTileRows];
  int32_t saturated[kMaxTiles * kTileRows];
};

// The packed words of 4 consecutive parameters in one row.
struct PackedQuad {
  uint32_t high, low;
  int32_t sum;
  int saturated;
  bool broken;
};

__device__ PackedQuad pack_quad(const RademacherJob& job, int64_t row, int64_t column,
                                const ColumnMoments<4>& moments) {
  const Gradients& block = job.block;
  const auto at = [&](int i) {
    const bool inside = column + i >= 0 && column + i < block.count;
    return inside ? row * block.row_stride + column + i : int64_t{-1};
  };
  float values[4];
  widen(block, values, at);
  const float scale = power_of_two(job.exponents[row]);
  PackedQuad quad{};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (at(i) < 0) continue;
    const Value value = value_of(block.adam, values[i], moments.exp_avg[i], moments.exp_avg_sq[i]);
    const int32_t q = on_grid(value.u, scale, kRademacherLimit, quad.saturated);
    quad.broken |= !value.finite;
    quad.sum += q;
    quad.high |= (static_cast<uint32_t>(q) >> 8 & 255u) << (8 * i);
    quad.low |= (static_cast<uint32_t>(q) & 255u) << (8 * i);
  }
  return quad;
}

// A thread packs 4 parameters of all rows, a warp a span. `packed` is (spans, tiles, 2 planes, 256 words).
__global__ void __launch_bounds__(kThreads)
    pack(const RademacherJob job, const Totals totals, int tiles, int64_t spans, uint32_t* packed, int64_t* row_sums) {
  RowNotes& notes = *dynamic_shared<RowNotes>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpLanes;
  const int64_t span = int64_t{blockIdx.x} * kWarps + thread / kWarpLanes;
  const int rows = static_cast<int>(job.block.rows);
  if (thread < rows) notes.sums[thread] = notes.saturated[thread] = 0;
  __syncthreads();

  if (span < spans) {
    const int64_t column = (job.block.offset / kSpan + span) * kSpan - job.block.offset + 4 * lane;
    ColumnMoments<4> moments;
    moments.load(job.block, column, 1);
    for (int row = 0; row < tiles * kTileRows; ++row) {
      const PackedQuad quad = row < rows ? pack_quad(job, row, column, moments) : PackedQuad{};
      uint32_t* tile = packed + (span * tiles + row / kTileRows) * kTileWords;
      const int word = word_in_plane(row % kTileRows, lane % 4, lane / 8, lane / 4 % 2);
      tile[word] = quad.high;
      tile[kPlaneWords + word] = quad.low;
      const int32_t sum = __reduce_add_sync(kAllLanes, quad.sum);
      if (lane == 0 && row < rows) atomicAdd(&notes.sums[row], sum);
      if (quad.saturated > 0) atomicAdd(&notes.saturated[row], quad.saturated);
      if (quad.broken) set_flag(totals.not_finite + row);
    }
  }
  __syncthreads();
  if (thread < rows) {
    add_to_total(row_sums + thread, notes.sums[thread]);
    if (notes.saturated[thread] > 0) add_to_total(totals.saturated + thread, notes.saturated[thread]);
  }
}

// What the blocks of `multiply` have in common.
struct Product {
  uint64_t seed;
  int64_t first_span;  // parameter index / 128 of the chunk's first
  int64_t spans, splits, output_tiles;
  int32_t dim;
  int rows;
  const uint4* packed;      // (spans, tiles, 2 planes, 2 halves, 32 lanes)
  const int64_t* row_sums;  // (rows) of q, in this chunk
  int64_t* sums;            // (rows, dim)
};

// The signs of 32 outputs in a span: word i of lane 4 g + t belongs to output g + 8 i.
__device__ void draw_signs(const Product& product, int64_t span, int32_t output, uint32_t (&words)[4]) {
  const uint64_t index = static_cast<uint64_t>(product.first_span + span);
  Words<1> drawn{{{static_cast<uint32_t>(index)},
                  {static_cast<uint32_t>(index >> 32)},
                  {static_cast<uint32_t>(output) + threadIdx.x % kWarpLanes},
                  {kRademacherDomain}}};
  philox4x32(drawn, static_cast<uint32_t>(product.seed), static_cast<uint32_t>(product.seed >> 32));
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = drawn.at[i][0];
}

// sums += signs of 32 outputs times one half of a span, for kTiles tiles of rows; sums[m] are outputs 16 m ..
template <int kTiles>
__device__ __forceinline__ void multiply_half(int half, const uint32_t (&words)[4], const uint4 (&high)[kTiles],
                                              const uint4 (&low)[kTiles], int32_t (&sums)[2][kTiles][2][4]) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int bit = 4 * half + 2 * c;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint32_t a[4] = {words[2 * m] >> bit & 0x01010101u, words[2 * m + 1] >> bit & 0x01010101u,
                             words[2 * m] >> (bit + 1) & 0x01010101u, words[2 * m + 1] >> (bit + 1) & 0x01010101u};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4 &h = high[tile], &l = low[tile];
        multiply_add_signed(sums[m][tile][0], a, c == 0 ? h.x : h.z, c == 0 ? h.y : h.w);
        multiply_add_unsigned(sums[m][tile][1], a, c == 0 ? l.x : l.z, c == 0 ? l.y : l.w);
      }
    }
  }
}

// Adds what a lane has of 32 outputs to the totals; `first_part` brings the sum of q in.
template <int kTiles>
__device__ void add_product(const Product& product, int32_t first_output, bool first_part,
                            const int32_t (&sums)[2][kTiles][2][4]) {
  const int lane = static_cast<int>(threadIdx.x % kWarpLanes), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t output = first_output + 16 * m + 8 * (i / 2) + g;
        const int row = kTileRows * tile + 2 * t + i % 2;
        if (output >= product.dim || row >= product.rows) continue;
        const int64_t negative = 256 * int64_t{sums[m][tile][0][i]} + sums[m][tile][1][i];
        add_to_total(product.sums + row * int64_t{product.dim} + output,
                     (first_part ? product.row_sums[row] : 0) - 2 * negative);
      }
    }
  }
}

// A block multiplies 8 warps * kSets * 32 outputs with kTiles * 8 rows over one part of the chunk. Its warps read the
// packed rows from shared memory, where the next span arrives while this one is multiplied.
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 1) multiply(const Product product) {
  constexpr int kSets = sets_of(kTiles);
  constexpr int kSpanQuads = kTiles * kTileWords / 4;
  constexpr int kFetches = (kSpanQuads + kThreads - 1) / kThreads;
  uint4* buffers = dynamic_shared<uint4>();  // (2, kSpanQuads)
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpLanes;
  const int64_t split = blockIdx.x / product.output_tiles;
  const int32_t output =
      static_cast<int32_t>((blockIdx.x % product.output_tiles * kWarps + thread / kWarpLanes) * (kSets * kSetOutputs));
  const int64_t begin = product.spans * split / product.splits, end = product.spans * (split + 1) / product.splits;

  uint4 fetched[kFetches];
  const auto fetch = [&](int64_t span) {
#pragma unroll
    for (int i = 0; i < kFetches; ++i) {
      const int quad = thread + i * kThreads;
      if (quad < kSpanQuads) fetched[i] = product.packed[span * kSpanQuads + quad];
    }
  };
  const auto store = [&](int64_t span) {
#pragma unroll
    for (int i = 0; i < kFetches; ++i) {
      const int quad = thread + i * kThreads;
      if (quad < kSpanQuads) buffers[span % 2 * kSpanQuads + quad] = fetched[i];
    }
  };

  int32_t sums[kSets][2][kTiles][2][4] = {};
  fetch(begin);
  store(begin);
  __syncthreads();
  for (int64_t span = begin; span < end; ++span) {
    if (span + 1 < end) fetch(span + 1);
    uint32_t words[kSets][4];
#pragma unroll
    for (int set = 0; set < kSets; ++set) draw_signs(product, span, output + set * kSetOutputs, words[set]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 high[kTiles], low[kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4* words_of_lane =
            buffers + span % 2 * kSpanQuads + tile * (kTileWords / 4) + half * kWarpLanes + lane;
        high[tile] = words_of_lane[0];
        low[tile] = words_of_lane[kPlaneWords / 4];
      }
#pragma unroll
      for (int set = 0; set < kSets; ++set) multiply_half<kTiles>(half, words[set], high, low, sums[set]);
    }
    if (span + 1 < end) store(span + 1);
    __syncthreads();
  }
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    add_product<kTiles>(product, output + set * kSetOutputs, split == 0, sums[set]);
  }
}

// A chunk of at most 32 rows: packs and multiplies.
void add_chunk(const RademacherJob& job, const Totals& totals, const RademacherPlan& plan, void* workspace,
               const Queue& queue) {
  const int64_t first_span = job.block.offset / kSpan;
  const int64_t spans = divide_up(job.block.offset + job.block.count, kSpan) - first_span;
  uint32_t* packed = static_cast<uint32_t*>(workspace);
  int64_t* row_sums = reinterpret_cast<int64_t*>(static_cast<char*>(workspace) + plan.packed_bytes());
  check(cudaMemsetAsync(row_sums, 0, job.block.rows * sizeof(int64_t), static_cast<cudaStream_t>(queue.stream)),
        "clear memory");
  launch(pack, divide_up(spans, kWarps), sizeof(RowNotes), queue, job, totals, plan.row_tiles, spans, packed, row_sums);

  const int64_t splits = plan.splits < spans ? plan.splits : spans;
  const Product product{job.seed,
                        first_span,
                        spans,
                        splits,
                        plan.output_tiles,
                        job.dim,
                        static_cast<int>(job.block.rows),
                        static_cast<const uint4*>(workspace),
                        row_sums,
                        totals.sums};
  const auto kernel = plan.row_tiles == 1 ? multiply<1> : plan.row_tiles == 2 ? multiply<2> : multiply<4>;
  launch(kernel, plan.output_tiles * splits, int64_t{2} * plan.row_tiles * kTileWords * 4, queue, product);
}

}  // namespace

int64_t rademacher_workspace_bytes(const Gradients& block, int64_t packed_bytes) {
  return plan_rademacher(block.rows, block.offset, block.count, 1, 1, packed_bytes).workspace_bytes();
}

void rademacher_accumulate(const RademacherJob& job, const Totals& totals, void* workspace, const Queue& queue,
                           int64_t packed_bytes) {
  constexpr int64_t kRowsAtOnce = kMaxTiles * kTileRows;
  const Gradients& block = job.block;
  if (block.rows == 0 || block.count == 0) return;
  const DeviceGuard guard(queue.device);
  const int processors = multiprocessors(queue.device);
  const int64_t begin = block.offset / kSpan * kSpan - block.offset;
  for (int64_t row = 0; row < block.rows; row += kRowsAtOnce) {
    const int64_t rows = block.rows - row < kRowsAtOnce ? block.rows - row : kRowsAtOnce;
    const RademacherPlan plan = plan_rademacher(rows, block.offset, block.count, job.dim, processors, packed_bytes);
    const int64_t width = plan.chunk_spans * kSpan;
    for (int64_t start = begin; start < block.count; start += width) {
      const int64_t first = start < 0 ? 0 : start;
      const int64_t last = start + width < block.count ? start + width : block.count;
      RademacherJob chunk = job;
      chunk.block = slice(block, row, rows, first, last - first);
      chunk.exponents += row;
      const Totals part{totals.sums + row * job.dim, totals.not_finite + row, totals.saturated + row};
      add_chunk(chunk, part, plan, workspace, queue);
    }
  }
}

}  // namespace dataflex::cuda
