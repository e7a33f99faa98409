// A share of work: rows, outputs or parameters from `begin` up to, not including, `end`.
#pragma once

#include <stdint.h>

namespace dataflex {

struct Range {
  int64_t begin, end;
};

}  // namespace dataflex
