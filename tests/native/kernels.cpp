// Runs every CPU kernel over odd shapes, with 1 to 5 threads and each instruction set that is there (AMX emulated), and
// compares their results. The program is built with sanitizers; see test_sanitizers.py.
//
// It chooses the instruction set itself, in place of cpu/isa.cpp.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include "adam_pass.h"
#include "cpu/isa.h"
#include "dots.h"
#include "gaussian.h"
#include "rademacher.h"
#include "sjlt.h"

namespace dataflex {
namespace {
Isa chosen = Isa::kPortable;
}  // namespace
Isa current_isa() { return chosen; }
}  // namespace dataflex

namespace {

using namespace dataflex;

void require(bool condition, const char* what, const char* isa, int threads) {
  if (condition) return;
  std::printf("%s: %s, %d threads\n", what, isa, threads);
  std::exit(1);
}

float random_value(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  const float x = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  return x * x * x;
}

// A block of gradients in exactly the memory it needs.
struct Case {
  Case(int64_t rows, int64_t count, int64_t offset, int32_t dim, AdamVariant variant, ValueType type, bool tiny = false)
      : rows(rows), dim(dim), floats(rows * count), halves(rows * count), exp_avg(count), exp_avg_sq(count) {
    uint32_t state = static_cast<uint32_t>(rows * 31 + count);
    for (float& x : floats) x = random_value(state);
    for (size_t i = 0; i < floats.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, &floats[i], sizeof bits);
      halves[i] = static_cast<uint16_t>(bits >> 16);
    }
    if (!floats.empty() && rows > 2) floats[count + count / 2] = NAN;
    for (float& x : exp_avg) x = random_value(state);
    for (float& x : exp_avg_sq) x = std::fabs(random_value(state));
    if (tiny) {  // second moments that are denormal, which eps does not hide
      for (auto* values : {&floats, &exp_avg}) {
        for (float& x : *values) x *= 0x1p-70f;
      }
      for (float& x : exp_avg_sq) x *= 0x1p-140f;
    }
    const float eps = tiny ? 0.0f : 1e-8f;
    const Adam adam{variant, exp_avg.data(), exp_avg_sq.data(), 0.9f, 0.1f, 0.999f, 0.001f, 2.0f, 3.0f, eps};
    const void* values = type == ValueType::kFloat32 ? static_cast<const void*>(floats.data()) : halves.data();
    block = {values, type, rows, count, count, offset, adam};
  }

  int64_t rows;
  int32_t dim;
  std::vector<float> floats;
  std::vector<uint16_t> halves;
  std::vector<float> exp_avg, exp_avg_sq;
  Gradients block;
};

struct FixedPoint {
  explicit FixedPoint(const Case& c) : sums(c.rows * c.dim, 3), not_finite(c.rows), saturated(c.rows) {}
  Totals view() { return {sums.data(), not_finite.data(), saturated.data()}; }
  bool operator==(const FixedPoint& o) const {
    return sums == o.sums && not_finite == o.not_finite && saturated == o.saturated;
  }
  std::vector<int64_t> sums;
  std::vector<uint8_t> not_finite;
  std::vector<int64_t> saturated;
};

constexpr uint64_t kSeed = 0x123456789ABCDEFull;

FixedPoint run_sjlt(const Case& c, int threads) {
  FixedPoint result(c);
  const std::vector<int32_t> exponents(c.rows, 21);
  sjlt_accumulate({c.block, exponents.data(), kSeed, c.dim, 3, threads}, result.view());
  return result;
}

FixedPoint run_rademacher(const Case& c, int threads) {
  FixedPoint result(c);
  const std::vector<int32_t> exponents(c.rows, 13);
  rademacher_accumulate({c.block, exponents.data(), kSeed, c.dim, threads}, result.view());
  return result;
}

std::vector<double> run_gaussian(const Case& c, int threads) {
  std::vector<double> sums(c.rows * c.dim);
  std::vector<uint8_t> not_finite(c.rows);
  gaussian_accumulate({c.block, kSeed, c.dim, threads}, {sums.data(), not_finite.data()});
  return sums;
}

struct Dots {
  bool operator==(const Dots& o) const { return sums == o.sums && not_finite == o.not_finite; }
  std::vector<double> sums;
  std::vector<uint8_t> not_finite;
};

// Directions in exactly the memory that they need, a gap of 3 between them.
Dots run_dots(const Case& c, int32_t number, int threads) {
  const int64_t stride = c.block.count + 3;
  std::vector<float> directions(number == 0 ? 0 : (number - 1) * stride + c.block.count);
  uint32_t state = 77;
  for (float& x : directions) x = random_value(state);
  Dots result{std::vector<double>(c.rows * (1 + number), 0.5), std::vector<uint8_t>(c.rows)};
  dots_accumulate({c.block, directions.data(), stride, number, threads},
                  {result.sums.data(), result.not_finite.data()});
  return result;
}

bool near(const std::vector<double>& a, const std::vector<double>& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return error <= 1e-12 * norm;
}

// torch.set_flush_denormal(true), for as long as it lives.
struct FlushDenormals {
#ifdef __SSE__
  FlushDenormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
  unsigned before;
#endif
};

void compare(const Case& sparse, const Case& dense, const char* isa) {
  chosen = Isa::kPortable;
  const FixedPoint sjlt = run_sjlt(sparse, 1), rademacher = run_rademacher(dense, 1);
  const std::vector<double> gaussian = run_gaussian(dense, 1);
  const int32_t numbers[] = {0, 1, 2, 9};
  std::vector<Dots> dots;
  for (const int32_t number : numbers) dots.push_back(run_dots(sparse, number, 1));
  for (const Isa each : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (std::strstr(isa, each == Isa::kPortable ? "portable" : each == Isa::kAvx2 ? "avx2" : "avx512") == nullptr) {
      continue;
    }
    chosen = each;
    const char* name = each == Isa::kAmx ? "amx" : each == Isa::kAvx512 ? "avx512" : each == Isa::kAvx2 ? "avx2" : "-";
    const std::vector<double> alone = run_gaussian(dense, 1);
    require(near(alone, gaussian), "gaussian is not that of the portable code", name, 1);
    for (const int threads : {1, 2, 5}) {
      require(run_sjlt(sparse, threads) == sjlt, "sjlt differs", name, threads);
      require(run_rademacher(dense, threads) == rademacher, "rademacher differs", name, threads);
      require(run_gaussian(dense, threads) == alone, "gaussian differs", name, threads);
      for (int i = 0; i < 4; ++i) require(run_dots(sparse, numbers[i], threads) == dots[i], "dots", name, threads);
      require(std::isfinite(adam_pass(sparse.block, threads)) || sparse.rows > 2, "adam_pass", name, threads);
      const FlushDenormals flush;
      require(run_sjlt(sparse, threads) == sjlt, "sjlt depends on denormals' mode", name, threads);
      require(run_rademacher(dense, threads) == rademacher, "rademacher depends on denormals' mode", name, threads);
      require(run_gaussian(dense, threads) == alone, "gaussian depends on denormals' mode", name, threads);
      require(run_dots(sparse, 9, threads) == dots[3], "dots depend on denormals' mode", name, threads);
    }
  }
}

}  // namespace

int main(int, char** arguments) {
  const struct {
    int64_t rows, count, offset;
    int32_t dim;
    AdamVariant variant;
    ValueType type;
  } cases[] = {
      {1, 1, 0, 1, AdamVariant::kNone, ValueType::kFloat32},
      {1, 9001, 5, 65, AdamVariant::kAdamW, ValueType::kFloat32},
      {2, 3000, 127, 100, AdamVariant::kLess, ValueType::kBFloat16},
      {3, 2500, 40, 130, AdamVariant::kSecondMoment, ValueType::kFloat16},
      {7, 2100, 1000, 33, AdamVariant::kAdamW, ValueType::kFloat16},
      {33, 700, 3, 130, AdamVariant::kNone, ValueType::kFloat32},
  };
  for (const auto& c : cases) {
    compare(Case(c.rows, c.count, c.offset, 48 * (1 + c.dim / 30), c.variant, c.type),
            Case(c.rows, c.count, c.offset, c.dim, c.variant, c.type), arguments[1]);
  }
  const Case tiny(3, 2100, 17, 96, AdamVariant::kAdamW, ValueType::kFloat32, true);
  compare(tiny, tiny, arguments[1]);
  return 0;
}
