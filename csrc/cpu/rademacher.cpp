// rademacher.h on the CPU: takes the implementation for this processor and shares the work among threads.
//
// The parameters are shared first, so that each value is normalised once; outputs too where there are too few
// parameters. Workers add to the totals row by row under a lock: integers allow any order. Per worker 0.8 MiB at most
// is allocated, before the threads start.
#include <algorithm>
#include <mutex>
#include <vector>

#include "isa.h"
#include "rademacher.h"
#include "rademacher_run.h"
#include "threads.h"
#include "work.h"

namespace dataflex {
namespace {

constexpr int64_t kSignsPerWorker = 1 << 23;  // less than this, times rows, is not worth a thread (0.1 ms)
constexpr int64_t kBlocksPerShare = 8;        // at fewer, adding to the totals would cost more than 5 %

const RademacherKernel& implementation() {
  switch (current_isa()) {
#ifdef DATAFLEX_X86
    case Isa::kAmx:
      return kRademacherAmx;
    case Isa::kAvx512:
      return kRademacherAvx512;
    case Isa::kAvx2:
      return kRademacherAvx2;
#endif
    default:
      return kRademacherPortable;
  }
}

// All work as equal tasks: a task is a slice of rows and outputs, and a share of the blocks of parameters.
class Plan {
 public:
  explicit Plan(const RademacherJob& job) : job_(job) {
    const Gradients& block = job.block;
    blocks_ = {block.offset / kBlock, divide_up(block.offset + block.count, kBlock)};
    const int64_t useful = 1 + static_cast<int64_t>(static_cast<double>(block.rows) * static_cast<double>(block.count) *
                                                    job.dim / kSignsPerWorker);
    workers = static_cast<int>(std::min<int64_t>(std::max(job.threads, 1), useful));
    shares_ = std::min<int64_t>(workers, divide_up(blocks_.end - blocks_.begin, kBlocksPerShare));
    row_slices_ = divide_up(block.rows, kSliceRows);
    const int64_t wanted = std::max(divide_up(job.dim, kSliceOutputs), divide_up(workers, shares_));
    slice_outputs_ = divide_up(divide_up(job.dim, wanted), kTile) * kTile;
    output_slices_ = divide_up(job.dim, slice_outputs_);
    tasks = shares_ * row_slices_ * output_slices_;
    workers = static_cast<int>(std::min<int64_t>(workers, tasks));
  }

  RademacherSlice task(int64_t index) const {
    const int64_t row = index / shares_ % row_slices_ * kSliceRows;
    const int64_t output = index / shares_ / row_slices_ * slice_outputs_;
    return {{row, std::min(row + kSliceRows, job_.block.rows)},
            {output, std::min<int64_t>(output + slice_outputs_, job_.dim)},
            share(blocks_, index % shares_, shares_)};
  }

  int workers;
  int64_t tasks;

 private:
  const RademacherJob& job_;
  Range blocks_;
  int64_t shares_, row_slices_, slice_outputs_, output_slices_;
};

// One worker's buffers.
class Worker {
 public:
  Worker(const RademacherKernel& kernel, const RademacherSlice& largest)
      : kernel_(kernel),
        partial_((largest.rows.end - largest.rows.begin) * largest.tiles() * kTile * sizeof(int32_t)),
        scratch_(kernel.scratch_bytes(largest)) {}

  void run(const RademacherJob& job, const RademacherSlice& task, const Totals& totals, std::mutex* locks) const {
    for (int64_t first = task.blocks.begin; first < task.blocks.end; first += kSpanBlocks) {
      const RademacherSlice slice{task.rows, task.outputs, {first, std::min(first + kSpanBlocks, task.blocks.end)}};
      uint8_t not_finite[kSliceRows] = {};
      int64_t saturated[kSliceRows] = {};
      kernel_.accumulate(job, slice, {partial_.at<int32_t>(0), scratch_.at<void>(0), not_finite, saturated});
      const int64_t rows = slice.rows.end - slice.rows.begin;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = slice.rows.begin + i;
        const std::lock_guard<std::mutex> lock(locks[i]);
        kernel_.flush(slice, partial_.at<int32_t>(i * slice.tiles() * kTile * sizeof(int32_t)),
                      totals.sums + row * job.dim + slice.outputs.begin);
        if (slice.outputs.begin > 0) continue;  // every slice of outputs sees the same values
        totals.not_finite[row] |= not_finite[i];
        totals.saturated[row] += saturated[i];
      }
    }
  }

 private:
  const RademacherKernel& kernel_;
  AlignedBytes partial_, scratch_;
};

}  // namespace

void rademacher_accumulate(const RademacherJob& job, const Totals& totals) {
  if (job.block.rows == 0 || job.block.count == 0) return;
  const RademacherKernel& kernel = implementation();
  const Plan plan(job);
  std::vector<Worker> workers;
  workers.reserve(plan.workers);
  for (int i = 0; i < plan.workers; ++i) workers.emplace_back(kernel, plan.task(0));
  std::mutex locks[kSliceRows];
  run_parallel(plan.workers, [&](int i) {
    for (int64_t task = i; task < plan.tasks; task += plan.workers) {
      workers[i].run(job, plan.task(task), totals, locks);
    }
  });
}

}  // namespace dataflex
