// Portable CPU implementation of sjlt.h.
//
// A worker walks its parameters in chunks that fit the first-level cache: it draws the matrix of the chunk once, then
// takes each of its rows through widen, normalise, quantise and scatter. With enough rows the workers share the rows;
// with few rows they share the parameters, each with totals of its own that are added up at the end.
#include "sjlt.h"

#include <algorithm>
#include <array>
#include <vector>

#include "philox.h"
#include "threads.h"
#include "values.h"

namespace dataflex {
namespace {

constexpr int kChunkGroups = 128;
constexpr int kChunk = kChunkGroups * kLanes;
constexpr int64_t kValuesPerWorker = 1 << 15;         // less than this is not worth a thread
constexpr int64_t kPrivateTotals = int64_t{1} << 23;  // 64 MiB of private totals at most

constexpr int multiply_gf16(int a, int b) {
  int product = 0;
  for (int bit = 0; bit < 4; ++bit) {
    if (b >> bit & 1) product ^= a << bit;
  }
  for (int bit = 6; bit >= 4; --bit) {
    if (product >> bit & 1) product ^= 0b10011 << (bit - 4);
  }
  return product;
}

using Positions = std::array<std::array<uint8_t, kLanes>, 15 * kLanes>;

// kPositions[(multiplier - 1) * 16 + shift][lane]
constexpr Positions make_positions() {
  Positions table{};
  for (int row = 0; row < 15 * kLanes; ++row) {
    for (int lane = 0; lane < kLanes; ++lane) {
      table[row][lane] = static_cast<uint8_t>(multiply_gf16(1 + row / kLanes, lane) ^ (row % kLanes));
    }
  }
  return table;
}

constexpr Positions kPositions = make_positions();

// Where one group of parameters goes in one repetition.
struct Placement {
  int32_t output;        // of the segment's first position
  uint16_t negative;     // one bit a lane
  uint16_t permutation;  // row of kPositions
};

struct Range {
  int64_t begin, end;
};

Range share(int64_t total, int part, int parts) { return {total * part / parts, total * (part + 1) / parts}; }

class Worker {
 public:
  explicit Worker(const SjltJob& job)
      : job_(job), placements_(static_cast<size_t>(job.sparsity) * kChunkGroups), values_(kChunk), grid_(kChunk) {}

  // Adds the share of `rows` and of `groups` (absolute group numbers) to `result`.
  void run(Range rows, Range groups, const SjltResult& result) {
    for (int64_t first = groups.begin; first < groups.end; first += kChunkGroups) {
      const int count = static_cast<int>(std::min<int64_t>(kChunkGroups, groups.end - first));
      place(first, count);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        load(row, first, count, result);
        scatter(count, result.totals + row * job_.dim);
      }
    }
  }

 private:
  // Draws placements_ of `count` groups, two repetitions a time.
  void place(int64_t first, int count) {
    const uint32_t key0 = static_cast<uint32_t>(job_.seed);
    const uint32_t key1 = static_cast<uint32_t>(job_.seed >> 32);
    for (int j = 0; j < job_.sparsity; j += 2) {
      Words<kChunkGroups> words{};
      for (int i = 0; i < count; ++i) {
        const uint64_t group = static_cast<uint64_t>(first + i);
        words[0][i] = static_cast<uint32_t>(group);
        words[1][i] = static_cast<uint32_t>(group >> 32);
        words[2][i] = static_cast<uint32_t>(j / 2);
        words[3][i] = kDomain;
      }
      philox4x32(words, key0, key1);
      for (int odd = 0; odd < 2 && j + odd < job_.sparsity; ++odd) {
        Placement* placements = placements_.data() + static_cast<size_t>(j + odd) * kChunkGroups;
        for (int i = 0; i < count; ++i) placements[i] = placement(j + odd, words[2 * odd][i], words[2 * odd + 1][i]);
      }
    }
  }

  Placement placement(int j, uint32_t place, uint32_t shape) const {
    const int32_t outputs = job_.dim / job_.sparsity;
    const uint32_t segment = static_cast<uint32_t>(uint64_t{place} * static_cast<uint32_t>(outputs / kLanes) >> 32);
    const uint32_t multiplier_less_one = (shape >> 20) * 15 >> 12;
    return {j * outputs + static_cast<int32_t>(segment) * kLanes, static_cast<uint16_t>(shape & 0xFFFFu),
            static_cast<uint16_t>(multiplier_less_one * kLanes + (shape >> 16 & 15u))};
  }

  // Fills grid_ with the chunk's integers; lanes of the chunk that are outside the block are zero.
  void load(int64_t row, int64_t first_group, int groups, const SjltResult& result) {
    const int64_t offset = static_cast<int64_t>(job_.offset);
    const int64_t start = first_group * kLanes;
    const int64_t begin = std::max(start, offset);
    const int64_t end = std::min(start + groups * kLanes, offset + job_.count);
    const int count = static_cast<int>(end - begin);
    std::fill(grid_.begin(), grid_.end(), 0);
    widen(job_.grads, job_.type, row * job_.row_stride + (begin - offset), count, values_.data());
    if (normalise(job_.adam, begin - offset, count, values_.data()) > 0) result.not_finite[row] = 1;
    const float scale = std::ldexp(1.0f, job_.exponents[row]);
    result.saturated[row] += quantise(values_.data(), scale, count, grid_.data() + (begin - start));
  }

  void scatter(int groups, int64_t* totals) const {
    for (int j = 0; j < job_.sparsity; ++j) {
      const Placement* placements = placements_.data() + static_cast<size_t>(j) * kChunkGroups;
      for (int i = 0; i < groups; ++i) {
        const Placement placement = placements[i];
        const int32_t* grid = grid_.data() + i * kLanes;
        const uint8_t* positions = kPositions[placement.permutation].data();
        int64_t* segment = totals + placement.output;
        int32_t values[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          const int32_t flip = -((placement.negative & 1 << lane) != 0);
          values[lane] = (grid[lane] ^ flip) - flip;
        }
        for (int lane = 0; lane < kLanes; ++lane) segment[positions[lane]] += values[lane];
      }
    }
  }

  const SjltJob& job_;
  std::vector<Placement> placements_;  // (sparsity, kChunkGroups)
  std::vector<float> values_;
  std::vector<int32_t> grid_;
};

// Totals of one worker that shares the parameters, not the rows.
struct PrivateResult {
  explicit PrivateResult(const SjltJob& job) : totals(job.rows * job.dim), not_finite(job.rows), saturated(job.rows) {}

  SjltResult view() { return {totals.data(), not_finite.data(), saturated.data()}; }

  void add_to(const SjltResult& result) const {
    for (size_t i = 0; i < totals.size(); ++i) result.totals[i] += totals[i];
    for (size_t row = 0; row < saturated.size(); ++row) {
      result.not_finite[row] |= not_finite[row];
      result.saturated[row] += saturated[row];
    }
  }

  std::vector<int64_t> totals;
  std::vector<uint8_t> not_finite;
  std::vector<int64_t> saturated;
};

void share_rows(const SjltJob& job, Range groups, int workers, const SjltResult& result) {
  std::vector<Worker> pool(workers, Worker(job));
  run_parallel(workers, [&](int i) { pool[i].run(share(job.rows, i, workers), groups, result); });
}

void share_groups(const SjltJob& job, Range groups, int workers, const SjltResult& result) {
  std::vector<Worker> pool(workers, Worker(job));
  std::vector<PrivateResult> results(workers, PrivateResult(job));
  run_parallel(workers, [&](int i) {
    const Range part = share(groups.end - groups.begin, i, workers);
    pool[i].run({0, job.rows}, {groups.begin + part.begin, groups.begin + part.end}, results[i].view());
  });
  for (const PrivateResult& part : results) part.add_to(result);
}

}  // namespace

void sjlt_accumulate(const SjltJob& job, const SjltResult& result) {
  if (job.rows == 0 || job.count == 0) return;
  const int64_t offset = static_cast<int64_t>(job.offset);
  const Range groups{offset / kLanes, (offset + job.count + kLanes - 1) / kLanes};
  const int64_t useful = 1 + job.rows * job.count / kValuesPerWorker;
  const int workers = static_cast<int>(std::min<int64_t>(std::max(job.threads, 1), useful));
  if (job.rows >= workers) {
    share_rows(job, groups, workers, result);
  } else {
    const int64_t affordable = std::max<int64_t>(1, kPrivateTotals / (job.rows * job.dim));
    share_groups(job, groups, static_cast<int>(std::min<int64_t>(workers, affordable)), result);
  }
}

}  // namespace dataflex
