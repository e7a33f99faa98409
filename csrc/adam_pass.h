// The floor that projections are measured against: reads every gradient and its moments, normalises, keeps nothing.
// For benchmarks alone.
#pragma once

#include "gradients.h"

namespace dataflex {

// The sum of all u (gradients.h, point 1) in no particular order, so that no compiler leaves the work out.
double adam_pass(const Gradients& block, int threads);

}  // namespace dataflex
