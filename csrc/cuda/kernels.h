// The functions of sjlt.h, rademacher.h, gaussian.h and dots.h on a CUDA device, with the same bits (gaussian: the same
// tolerance). All pointers of a job and of its totals are device memory; `threads` is not used; exponents are not
// checked (they cannot be without waiting for the device).
//
// The functions put their work on a stream and return; a CUDA error is a std::runtime_error with CUDA's own text. The
// workspace must stay allocated until the stream has done the work, and must be aligned to 16 bytes.
#pragma once

#include <stdint.h>

#include <string>

#include "dots.h"
#include "gaussian.h"
#include "rademacher.h"
#include "sjlt.h"

namespace dataflex::cuda {

struct Queue {
  int device;
  void* stream;  // a cudaStream_t of that device
};

void sjlt_accumulate(const SjltJob& job, const Totals& totals, const Queue& queue);

// Of the packed values of rademacher: what a second-level cache of sm_80 and newer holds.
constexpr int64_t kPackedBytes = int64_t{32} << 20;

// The workspace holds at most `packed_bytes` of values and a few sums; the parameters go through it chunk by chunk.
int64_t rademacher_workspace_bytes(const Gradients& block, int64_t packed_bytes = kPackedBytes);
void rademacher_accumulate(const RademacherJob& job, const Totals& totals, void* workspace, const Queue& queue,
                           int64_t packed_bytes = kPackedBytes);

int64_t gaussian_workspace_bytes(const Gradients& block, int32_t dim);
void gaussian_accumulate(const GaussianJob& job, const GaussianTotals& totals, void* workspace, const Queue& queue);

// The workspace holds at most `partial_bytes` of partial sums, unless a single piece has more.
constexpr int64_t kPartialBytes = int64_t{8} << 20;
int64_t dots_workspace_bytes(const Gradients& block, int32_t number, int64_t partial_bytes = kPartialBytes);
void dots_accumulate(const DotsJob& job, const DotsTotals& totals, void* workspace, const Queue& queue,
                     int64_t partial_bytes = kPartialBytes);

// Why the kernels cannot run on this device; empty if they can. Never throws.
std::string device_problem(int device);

}  // namespace dataflex::cuda
