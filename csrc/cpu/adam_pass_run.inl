// One implementation of adam_pass.h, named DATAFLEX_ADAM_PASS: the same chunks and loops as in the projections.
#include "adam_pass_run.h"
#include "chunk.h"

namespace dataflex {

double DATAFLEX_ADAM_PASS(const Gradients& block, Range columns) {
  constexpr int kChunk = 2048, kLanes = 64;
  float values[kChunk], sums[kLanes] = {};
  for (int64_t first = columns.begin; first < columns.end; first += kChunk) {
    const int count = static_cast<int>(columns.end - first < kChunk ? columns.end - first : kChunk);
    for (int64_t row = 0; row < block.rows; ++row) {
      load_values(block, row, first, count, values);
      for (int i = count; i < kChunk; ++i) values[i] = 0;
      for (int i = 0; i < kChunk; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += values[i + lane];
      }
    }
  }
  double total = 0;
  for (const float sum : sums) total += static_cast<double>(sum);
  return total;
}

}  // namespace dataflex
