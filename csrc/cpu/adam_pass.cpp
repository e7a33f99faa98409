// adam_pass.h on the CPU: takes the implementation for this processor and shares the columns among threads.
#include "adam_pass.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "adam_pass_run.h"
#include "isa.h"
#include "threads.h"
#include "work.h"

namespace dataflex {
namespace {

AdamPassRun implementation() {
  switch (current_isa()) {
#ifdef DATAFLEX_X86
    case Isa::kAmx:
    case Isa::kAvx512:
      return adam_pass_avx512;
    case Isa::kAvx2:
      return adam_pass_avx2;
#endif
    default:
      return adam_pass_portable;
  }
}

}  // namespace

double adam_pass(const Gradients& block, int threads) {
  const AdamPassRun run = implementation();
  const int workers = std::max(threads, 1);
  std::vector<double> sums(workers);
  run_parallel(workers, [&](int i) { sums[i] = run(block, share({0, block.count}, i, workers)); });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace dataflex
