// dots.h on the CPU: takes the implementation for this processor and shares pieces and rows among threads. Rows come
// first, so that a piece's moments and directions stay in the cache while the rows pass. Every piece of every row has a
// partial sum of its own; they are added in order when all are there.
#include "dots.h"

#include <algorithm>
#include <vector>

#include "dots_run.h"
#include "isa.h"
#include "threads.h"
#include "work.h"

namespace dataflex {
namespace {

constexpr int64_t kPartialSums = 1 << 20;  // 8 MiB at most, unless a single piece has more

const DotsKernel& implementation() {
  switch (current_isa()) {
#ifdef DATAFLEX_X86
    case Isa::kAmx:
    case Isa::kAvx512:
      return kDotsAvx512;
    case Isa::kAvx2:
      return kDotsAvx2;
#endif
    default:
      return kDotsPortable;
  }
}

// What the pieces that are summed together leave.
struct Partial {
  std::vector<double> sums;     // (pieces, rows, 1 + number)
  std::vector<uint8_t> broken;  // (pieces, rows)

  void add_to(const DotsTotals& totals, int64_t pieces, int64_t rows, int64_t width) const {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      for (int64_t i = 0; i < rows * width; ++i) totals.sums[i] += sums[piece * rows * width + i];
      for (int64_t row = 0; row < rows; ++row) totals.not_finite[row] |= broken[piece * rows + row];
    }
  }
};

}  // namespace

void dots_accumulate(const DotsJob& job, const DotsTotals& totals) {
  const int64_t rows = job.block.rows, width = 1 + int64_t{job.number};
  if (rows == 0 || job.block.count == 0) return;
  const DotsKernel& kernel = implementation();
  const int64_t pieces = divide_up(job.block.count, kPiece), groups = divide_up(rows, kDotsRows);
  const int64_t at_once = std::min(pieces, std::max<int64_t>(1, kPartialSums / (rows * width)));
  const int workers = static_cast<int>(std::min<int64_t>(std::max(job.threads, 1), at_once * groups));
  std::vector<AlignedBytes> scratch;
  scratch.reserve(workers);
  for (int i = 0; i < workers; ++i) scratch.emplace_back(kernel.scratch_bytes);
  Partial partial{std::vector<double>(at_once * rows * width), std::vector<uint8_t>(at_once * rows)};
  for (int64_t first = 0; first < pieces; first += at_once) {
    const int64_t some = std::min(at_once, pieces - first);
    run_parallel(workers, [&](int i) {
      const Range own = share({0, some * groups}, i, workers);
      for (int64_t unit = own.begin; unit < own.end; ++unit) {
        const int64_t piece = unit / groups, row = unit % groups * kDotsRows;
        kernel.sum_piece(job, {row, std::min(row + kDotsRows, rows)}, first + piece, scratch[i].at<void>(0),
                         partial.sums.data() + (piece * rows + row) * width,
                         partial.broken.data() + piece * rows + row);
      }
    });
    partial.add_to(totals, some, rows, width);
  }
}

}  // namespace dataflex
