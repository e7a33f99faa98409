// What the dispatcher (dots.cpp) and the implementations (dots_run.inl, one object file an instruction set) share.
#pragma once

#include <stddef.h>

#include "dots.h"
#include "range.h"

namespace dataflex {

constexpr int kDotsRows = 4;  // that share what is read of a direction

struct DotsKernel {
  size_t scratch_bytes;
  // The sums of at most kDotsRows rows over one piece: `partial` and `broken` are those of the first of the rows, in
  // (rows, 1 + number) and (rows). `scratch` is 64-byte aligned.
  void (*sum_piece)(const DotsJob&, Range rows, int64_t piece, void* scratch, double* partial, uint8_t* broken);
};

extern const DotsKernel kDotsPortable;
#ifdef DATAFLEX_X86
extern const DotsKernel kDotsAvx2, kDotsAvx512;
#endif

}  // namespace dataflex
