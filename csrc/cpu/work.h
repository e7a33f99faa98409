// How work and memory are shared among threads. For the dispatchers alone, which are compiled for no particular
// instruction set.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "range.h"

namespace dataflex {

constexpr size_t kAlignment = 64;  // of vectors and cache lines

// The part-th of `parts` equal shares of whole.
inline Range share(Range whole, int64_t part, int64_t parts) {
  const int64_t total = whole.end - whole.begin;
  return {whole.begin + total * part / parts, whole.begin + total * (part + 1) / parts};
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Zeroed memory that starts at a cache line. Not copyable: the vector's memory would move.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t bytes) : memory_(bytes + kAlignment) {
    void* start = memory_.data();
    size_t space = memory_.size();
    start_ = std::align(kAlignment, bytes, start, space);
  }
  AlignedBytes(AlignedBytes&&) = default;
  AlignedBytes(const AlignedBytes&) = delete;

  template <class T>
  T* at(size_t byte) const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(start_) + byte);
  }

 private:
  std::vector<unsigned char> memory_;
  void* start_;
};

}  // namespace dataflex
