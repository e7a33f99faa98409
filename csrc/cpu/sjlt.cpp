// sjlt.h on the CPU: takes the implementation for this processor and shares the work among threads.
//
// Where there are many parameters, or fewer rows than workers, the workers share the parameters, and all but the first
// have totals of their own that are added at the end: no part of the matrix is drawn twice. They share the rows of a
// small block, whose totals would cost more than the drawing. All memory is allocated before the threads start.
#include <algorithm>
#include <vector>

#include "isa.h"
#include "sjlt.h"
#include "sjlt_run.h"
#include "threads.h"
#include "work.h"

namespace dataflex {
namespace {

constexpr int64_t kValuesPerWorker = 1 << 15;         // less than this is not worth a thread
constexpr int64_t kChunksPerWorker = 16;              // less than this is not worth private totals
constexpr int64_t kPrivateTotals = int64_t{1} << 23;  // 64 MiB of private totals at most

SjltRun implementation() {
  switch (current_isa()) {
#ifdef DATAFLEX_X86
    case Isa::kAmx:
    case Isa::kAvx512:
      return sjlt_run_avx512;
    case Isa::kAvx2:
      return sjlt_run_avx2;
#endif
    default:
      return sjlt_run_portable;
  }
}

// Buffers of one worker.
class Buffers {
 public:
  explicit Buffers(const SjltJob& job)
      : sources_(sizeof(uint32_t) * quads(job.sparsity) * kLanes * kChunkGroups),
        outputs_(static_cast<size_t>(job.sparsity) * kChunkGroups),
        hits_(job.dim / kLanes),
        grid_(sizeof(int32_t) * kPieceGroups * kLanes),
        sums_(sizeof(int32_t) * job.dim) {}

  Workspace view() {
    return {sources_.at<uint32_t>(0), outputs_.data(), hits_.data(), grid_.at<int32_t>(0), sums_.at<int32_t>(0)};
  }

 private:
  AlignedBytes sources_;
  std::vector<int32_t> outputs_;
  std::vector<uint16_t> hits_;
  AlignedBytes grid_, sums_;
};

template <class T>
std::vector<T> make(const SjltJob& job, int count) {
  std::vector<T> made;
  made.reserve(count);
  for (int i = 0; i < count; ++i) made.emplace_back(job);
  return made;
}

// Totals of a worker beside the first, where they share the parameters.
struct PrivateTotals {
  explicit PrivateTotals(const SjltJob& job)
      : sums(job.block.rows * job.dim), not_finite(job.block.rows), saturated(job.block.rows) {}

  Totals view() { return {sums.data(), not_finite.data(), saturated.data()}; }

  void add_to(const Totals& totals) const {
    for (size_t i = 0; i < sums.size(); ++i) totals.sums[i] += sums[i];
    for (size_t row = 0; row < saturated.size(); ++row) {
      totals.not_finite[row] |= not_finite[row];
      totals.saturated[row] += saturated[row];
    }
  }

  std::vector<int64_t> sums;
  std::vector<uint8_t> not_finite;
  std::vector<int64_t> saturated;
};

void share_rows(const SjltJob& job, Range groups, int workers, const Totals& totals) {
  const SjltRun run = implementation();
  std::vector<Buffers> buffers = make<Buffers>(job, workers);
  run_parallel(workers,
               [&](int i) { run(job, share({0, job.block.rows}, i, workers), groups, totals, buffers[i].view()); });
}

void share_groups(const SjltJob& job, Range groups, int workers, const Totals& totals) {
  const SjltRun run = implementation();
  std::vector<Buffers> buffers = make<Buffers>(job, workers);
  std::vector<PrivateTotals> others = make<PrivateTotals>(job, workers - 1);
  run_parallel(workers, [&](int i) {
    const Totals own = i == 0 ? totals : others[i - 1].view();
    run(job, {0, job.block.rows}, share(groups, i, workers), own, buffers[i].view());
  });
  for (const PrivateTotals& part : others) part.add_to(totals);
}

}  // namespace

void sjlt_accumulate(const SjltJob& job, const Totals& totals) {
  if (job.block.rows == 0 || job.block.count == 0) return;
  const int64_t offset = job.block.offset;
  const Range groups{offset / kLanes, (offset + job.block.count + kLanes - 1) / kLanes};
  const int64_t useful = 1 + job.block.rows * job.block.count / kValuesPerWorker;
  const int workers = static_cast<int>(std::min<int64_t>(std::max(job.threads, 1), useful));
  const int64_t affordable = std::max<int64_t>(1, kPrivateTotals / (job.block.rows * job.dim));
  const bool many = groups.end - groups.begin >= kChunksPerWorker * kChunkGroups * workers;
  if (job.block.rows >= workers && !(many && affordable >= workers)) {
    share_rows(job, groups, workers, totals);
  } else {
    share_groups(job, groups, static_cast<int>(std::min<int64_t>(workers, affordable)), totals);
  }
}

}  // namespace dataflex
