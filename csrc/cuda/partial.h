// Partial sums in binary64, added in a fixed order.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "plan.h"

namespace dataflex::cuda {
namespace {  // a copy for each file that includes it

// totals[i] += partial[0][i], then += partial[1][i] ...
__global__ void __launch_bounds__(kThreads)
    add_partial(const double* partial, int64_t parts, int64_t count, double* totals) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  double sum = totals[i];
  for (int64_t part = 0; part < parts; ++part) sum += partial[part * count + i];
  totals[i] = sum;
}

}  // namespace
}  // namespace dataflex::cuda
