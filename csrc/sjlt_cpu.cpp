// CPU side of sjlt.h: chooses the implementation for this processor and shares the work among threads.
//
// With enough rows the workers share the rows; with few rows they share the parameters, each with totals of its own
// that are added up at the end. All memory is allocated before the threads start.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "sjlt.h"
#include "sjlt_run.h"
#include "threads.h"

namespace dataflex {
namespace {

constexpr int64_t kValuesPerWorker = 1 << 15;         // less than this is not worth a thread
constexpr int64_t kPrivateTotals = int64_t{1} << 23;  // 64 MiB of private totals at most
constexpr size_t kAlignment = 64;

struct Implementation {
  const char* name;
  SjltRun run;
  bool supported;
};

// Best first. DATAFLEX_ISA names one to use in place of the best that this processor supports.
std::vector<Implementation> implementations() {
#ifdef DATAFLEX_X86
  __builtin_cpu_init();
  return {{"avx512", sjlt_run_avx512, __builtin_cpu_supports("avx512f") != 0},
          {"avx2", sjlt_run_avx2, __builtin_cpu_supports("avx2") != 0},
          {"portable", sjlt_run_portable, true}};
#else
  return {{"portable", sjlt_run_portable, true}};
#endif
}

Implementation choose() {
  const char* wanted = std::getenv("DATAFLEX_ISA");
  std::string known;
  for (const Implementation& candidate : implementations()) {
    if (!candidate.supported) continue;
    if (wanted == nullptr || *wanted == 0 || candidate.name == std::string(wanted)) return candidate;
    known += known.empty() ? candidate.name : std::string(", ") + candidate.name;
  }
  throw std::invalid_argument("DATAFLEX_ISA is '" + std::string(wanted) + "'; this processor has: " + known);
}

Range share(int64_t total, int part, int parts) { return {total * part / parts, total * (part + 1) / parts}; }

// Aligned buffers of one worker.
class Buffers {
 public:
  explicit Buffers(const SjltJob& job)
      : placements_(static_cast<size_t>(job.sparsity) * kChunkGroups),
        values_(kChunk),
        integers_(kChunk + job.dim + kAlignment / sizeof(int32_t)) {}

  Workspace view() {
    void* start = integers_.data();
    size_t space = integers_.size() * sizeof(int32_t);
    int32_t* grid = static_cast<int32_t*>(std::align(kAlignment, sizeof(int32_t), start, space));
    return {placements_.data(), values_.data(), grid, grid + kChunk};
  }

 private:
  std::vector<Placement> placements_;
  std::vector<float> values_;
  std::vector<int32_t> integers_;
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
  const SjltRun run = choose().run;
  std::vector<Buffers> buffers(workers, Buffers(job));
  run_parallel(workers, [&](int i) { run(job, share(job.rows, i, workers), groups, result, buffers[i].view()); });
}

void share_groups(const SjltJob& job, Range groups, int workers, const SjltResult& result) {
  const SjltRun run = choose().run;
  std::vector<Buffers> buffers(workers, Buffers(job));
  std::vector<PrivateResult> results(workers, PrivateResult(job));
  run_parallel(workers, [&](int i) {
    const Range part = share(groups.end - groups.begin, i, workers);
    const Range own{groups.begin + part.begin, groups.begin + part.end};
    run(job, {0, job.rows}, own, results[i].view(), buffers[i].view());
  });
  for (const PrivateResult& part : results) part.add_to(result);
}

}  // namespace

const char* sjlt_isa() { return choose().name; }

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
