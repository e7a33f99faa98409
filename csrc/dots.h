// `dots`: inner products of rows with a few directions, and their squares, in one pass over gradients and moments.
//
// Values u are those of gradients.h, point 1; a u that is not finite counts as 0 and flags its row. For a row u of the
// block and directions q_1 .. q_number:
//
//   sums[0] += <u, u>        sums[j] += <u, q_j>
//
// Products of two float32 are exact in binary64 (a fused multiply-add is the same as two operations); only additions
// round, and their order is part of the specification. A piece is kPiece consecutive columns from the block's first;
// the last may be shorter.
//   1. Lane l of a piece adds the products of its columns l, l + kDotsLanes, l + 2 kDotsLanes, ... in turn, from 0 on.
//   2. The lanes are added in a tree: lane l and lane l + 16, then l and l + 8, l + 4, l + 2, l + 1.
//   3. The pieces are added to the sum in turn.
// So batch, threads, instruction set and device change no bit, nor does a split of the columns at borders of pieces.
#pragma once

#include "gradients.h"

namespace dataflex {

constexpr int kPiece = 4096;
constexpr int kDotsLanes = 32;

struct DotsJob {
  Gradients block;
  const float* directions;   // (number, count), a direction's values consecutive
  int64_t direction_stride;  // in values
  int32_t number;            // of directions, from 0 on
  int threads;               // at most this many, the caller's among them
};

struct DotsTotals {
  double* sums;         // (rows, 1 + number), added to: the square, then the inner products
  uint8_t* not_finite;  // (rows), set to 1 where a value of the row is not finite, else left alone
};

void dots_accumulate(const DotsJob& job, const DotsTotals& totals);

}  // namespace dataflex
