// A group of 16 values of the grid and its way into the sums, in each instruction set (sjlt_run.inl).
//
// A word of `sources` stands for a position and serves four repetitions, a byte each: bits 0-3 are the lane that goes
// to the position, bit 4 says that its sign flips.
#pragma once

#include <stdint.h>

#include "intrinsics.h"
#include "sjlt.h"

namespace dataflex {
namespace {  // a copy for each instruction set that includes it

constexpr int kFlips = 16;  // bit 4

#if defined(__AVX512F__)

using Sources = __m512i;
inline Sources load_sources(const uint32_t* words) { return _mm512_load_si512(words); }

class Group {
 public:
  explicit Group(__m512i values) : values_(values), flipped_(_mm512_sub_epi32(_mm512_setzero_si512(), values)) {}
  explicit Group(const int32_t* grid) : Group(_mm512_load_si512(grid)) {}

  // sums[position] += the value that byte kByte names, for the 16 positions of a segment.
  template <int kByte>
  void add(Sources sources, int32_t* sums) const {
    const __m512i source = _mm512_srli_epi32(sources, 8 * kByte);  // the permutation reads its low five bits
    const __m512i moved = _mm512_permutex2var_epi32(values_, source, flipped_);
    _mm512_store_si512(sums, _mm512_add_epi32(_mm512_load_si512(sums), moved));
  }

 private:
  __m512i values_, flipped_;
};

#elif defined(__AVX2__)

struct Sources {
  __m256i half[2];
};

inline Sources load_sources(const uint32_t* words) {
  const __m256i* halves = reinterpret_cast<const __m256i*>(words);
  return {{_mm256_load_si256(halves), _mm256_load_si256(halves + 1)}};
}

class Group {
 public:
  explicit Group(const int32_t* grid)
      : low_(_mm256_load_si256(reinterpret_cast<const __m256i*>(grid))),
        high_(_mm256_load_si256(reinterpret_cast<const __m256i*>(grid + 8))) {}

  template <int kByte>
  void add(const Sources& sources, int32_t* sums) const {
    for (int half = 0; half < 2; ++half) {
      __m256i* at = reinterpret_cast<__m256i*>(sums + 8 * half);
      const __m256i moved = pick(_mm256_srli_epi32(sources.half[half], 8 * kByte));
      _mm256_store_si256(at, _mm256_add_epi32(_mm256_load_si256(at), moved));
    }
  }

 private:
  __m256i pick(__m256i source) const {
    const __m256 from_low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low_, source));
    const __m256 from_high = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high_, source));
    const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(source, 28));  // bit 3 becomes the sign
    const __m256i values = _mm256_castps_si256(_mm256_blendv_ps(from_low, from_high, is_high));
    const __m256i flips = _mm256_srai_epi32(_mm256_slli_epi32(source, 27), 31);
    return _mm256_sub_epi32(_mm256_xor_si256(values, flips), flips);
  }

  __m256i low_, high_;
};

#else

using Sources = const uint32_t*;
inline Sources load_sources(const uint32_t* words) { return words; }

class Group {
 public:
  explicit Group(const int32_t* grid) : values_(grid) {}

  template <int kByte>
  void add(Sources sources, int32_t* sums) const {
    for (int position = 0; position < kLanes; ++position) {
      const uint32_t source = sources[position] >> 8 * kByte;
      const int32_t flips = -static_cast<int32_t>((source & kFlips) != 0);
      sums[position] += (values_[source % kLanes] ^ flips) - flips;
    }
  }

 private:
  const int32_t* values_;
};

#endif

}  // namespace
}  // namespace dataflex
