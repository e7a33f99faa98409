// `rademacher`: dense projection with random signs in exact fixed point, P = P' / sqrt(dim), P' of +-1.
//
// This header and gradients.h are the specification; every implementation gives the same bits. The grid's limit is
// 2^15 - 1: q fits two bytes, which integer matrix units multiply. The sign of output o and parameter d:
//
//   lane  = 4 * (o % 8) + d / 4 % 4
//   words = philox4x32(counter = {d / 128 low, d / 128 high, o / 32 * 32 + lane, kRademacherDomain},
//                      key = {seed low, seed high})
//   word  = words[o / 8 % 4]
//   bit   = 8 * (d % 4) + d / 16 % 8
//   totals[row][o] += (word >> bit & 1) ? -q : q
//
// The layout serves three kinds of hardware:
// - A block of 128 parameters is an 8 x 16 matrix, rows d / 16 % 8 and columns e = d % 16. Byte d % 4 of a word is one
//   column, of one output: eight signs in a row, an index into a table of the sums of 8 values (or, nibble by nibble,
//   of 4), which is how CPUs add them.
// - mma.m16n8k32 with 8-bit operands: the signs are the A operand. Lane (g, t) of a warp holds rows g and g + 8, and
//   columns 4 t .. 4 t + 3 and 16 + 4 t .. 16 + 4 t + 3 of the 16 x 32 tile. One Philox call a lane (lane = 4 g + t)
//   gives its bits for 32 outputs (words i: output g + 8 i) and 128 parameters (4 tiles of 32): the register of word i,
//   tile c, half h (parameters 32 c + 16 h + 4 t .. + 3) is word i >> (2 c + h) & 0x01010101.
// - Byte tiles of 4 parameters an output (AMX, dot products of 4 bytes) take a nibble as an index of 4 bytes.
#pragma once

#include "gradients.h"

namespace dataflex {

constexpr float kRademacherLimit = 32767.0f;
constexpr uint32_t kRademacherDomain = 0x72616465u;  // "rade"

struct RademacherJob {
  Gradients block;
  const int32_t* exponents;  // (rows), in [-126, 127]
  uint64_t seed;
  int32_t dim;  // any number of outputs
  int threads;  // at most this many, the caller's among them
};

void rademacher_accumulate(const RademacherJob& job, const Totals& totals);

}  // namespace dataflex
