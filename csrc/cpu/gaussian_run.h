// What the dispatcher (gaussian.cpp) and the implementations (gaussian_run.inl, one object file an instruction set)
// share.
#pragma once

#include <stddef.h>

#include "gaussian.h"
#include "range.h"

namespace dataflex {

constexpr int kGaussianTile = 32;  // outputs; shares start at multiples of it

struct GaussianKernel {
  size_t scratch_bytes;
  // Adds the share of `outputs` of all rows; the one that starts at output 0 marks the rows that are not finite.
  // `scratch` is 64-byte aligned.
  void (*accumulate)(const GaussianJob&, Range outputs, const GaussianTotals&, void* scratch);
};

extern const GaussianKernel kGaussianPortable;
#ifdef DATAFLEX_X86
extern const GaussianKernel kGaussianAvx2, kGaussianAvx512;
#endif

}  // namespace dataflex
