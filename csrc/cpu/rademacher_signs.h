// The signs of rademacher.h, and the order of outputs in vectors of them.
//
// A vector of kPhiloxLanes words holds, of one t and word number i, the lanes g = 0 .. 7 of kPhiloxLanes / 8 times 32
// outputs: a group. Sums stay in this order, (group, i, lane), until they are flushed.
#pragma once

#include "philox_lanes.h"
#include "rademacher_run.h"

namespace dataflex {
namespace {  // a copy for each instruction set that includes it

// words[t][i][lane] of the group of outputs that starts at `output`, for one block of parameters.
inline void draw_signs(const RademacherJob& job, int64_t block, int64_t output, uint32_t* words) {
  for (int t = 0; t < 4; ++t) {
    Words<kPhiloxLanes> drawn;
    for (int lane = 0; lane < kPhiloxLanes; ++lane) {
      drawn.at[0][lane] = static_cast<uint32_t>(static_cast<uint64_t>(block));
      drawn.at[1][lane] = static_cast<uint32_t>(static_cast<uint64_t>(block) >> 32);
      drawn.at[2][lane] = static_cast<uint32_t>(output) + static_cast<uint32_t>(lane / 8 * 32 + lane % 8 * 4 + t);
      drawn.at[3][lane] = kRademacherDomain;
    }
    philox_lanes(drawn, static_cast<uint32_t>(job.seed), static_cast<uint32_t>(job.seed >> 32));
    memcpy(words + t * 4 * kPhiloxLanes, drawn.at, sizeof drawn.at);
  }
}

// Adds the 32-bit sums of one row to its totals, and clears them.
inline void flush_row(const RademacherSlice& slice, int32_t* partial, int64_t* sums) {
  const int64_t outputs = slice.outputs.end - slice.outputs.begin;
  for (int64_t run = 0; run < slice.tiles() * kTile; run += 8) {
    const int64_t group = run / (4 * kPhiloxLanes), i = run / kPhiloxLanes % 4, half = run / 8 % (kPhiloxLanes / 8);
    const int64_t output = group * 4 * kPhiloxLanes + 32 * half + 8 * i;
    if (output + 8 <= outputs) {
      for (int g = 0; g < 8; ++g) sums[output + g] += partial[run + g];
    } else {
      for (int64_t o = output; o < outputs; ++o) sums[o] += partial[run + (o - output)];
    }
  }
  memset(partial, 0, sizeof(int32_t) * slice.tiles() * kTile);
}

}  // namespace
}  // namespace dataflex
