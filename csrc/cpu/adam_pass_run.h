// What the dispatcher (adam_pass.cpp) and the implementations (adam_pass_run.inl) share.
#pragma once

#include "adam_pass.h"
#include "range.h"

namespace dataflex {

// The sum of u over all rows and a share of the columns.
using AdamPassRun = double (*)(const Gradients&, Range columns);

double adam_pass_portable(const Gradients&, Range columns);
#ifdef DATAFLEX_X86
double adam_pass_avx2(const Gradients&, Range columns);
double adam_pass_avx512(const Gradients&, Range columns);
#endif

}  // namespace dataflex
