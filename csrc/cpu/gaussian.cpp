// gaussian.h on the CPU: takes the implementation for this processor and shares the outputs among threads. Drawing the
// entries is most of the work, and shares of outputs have none in common; nor do their sums, so that the number of
// threads does not change a bit.
#include "gaussian.h"

#include <algorithm>
#include <vector>

#include "gaussian_run.h"
#include "isa.h"
#include "threads.h"
#include "work.h"

namespace dataflex {
namespace {

constexpr int64_t kEntriesPerWorker = 1 << 16;  // less than this is not worth a thread (0.1 ms)

const GaussianKernel& implementation() {
  switch (current_isa()) {
#ifdef DATAFLEX_X86
    case Isa::kAmx:
    case Isa::kAvx512:
      return kGaussianAvx512;
    case Isa::kAvx2:
      return kGaussianAvx2;
#endif
    default:
      return kGaussianPortable;
  }
}

}  // namespace

void gaussian_accumulate(const GaussianJob& job, const GaussianTotals& totals) {
  if (job.block.rows == 0 || job.block.count == 0) return;
  const GaussianKernel& kernel = implementation();
  const Range tiles{0, divide_up(job.dim, kGaussianTile)};
  const int64_t useful = 1 + static_cast<int64_t>(static_cast<double>(job.block.count) * job.dim / kEntriesPerWorker);
  const int workers = static_cast<int>(std::min({int64_t{std::max(job.threads, 1)}, useful, tiles.end}));
  std::vector<AlignedBytes> scratch;
  scratch.reserve(workers);
  for (int i = 0; i < workers; ++i) scratch.emplace_back(kernel.scratch_bytes);
  run_parallel(workers, [&](int i) {
    const Range own = share(tiles, i, workers);
    const Range outputs{own.begin * kGaussianTile, std::min<int64_t>(own.end * kGaussianTile, job.dim)};
    kernel.accumulate(job, outputs, totals, scratch[i].at<void>(0));
  });
}

}  // namespace dataflex
