// dataflex._native: checks the arguments, releases the GIL, calls the kernels. Python passes numpy views of its
// tensors; 16-bit floats arrive as int16, because numpy knows no bfloat16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "adam_pass.h"
#include "cpu/isa.h"
#include "cuda/bindings.h"
#include "dots.h"
#include "gaussian.h"
#include "names.h"
#include "philox.h"
#include "rademacher.h"
#include "sjlt.h"

namespace py = pybind11;

namespace {

using dataflex::AdamVariant;
using dataflex::Gradients;
using dataflex::require;
using dataflex::Totals;
using dataflex::ValueType;
using Moments = std::optional<py::array_t<float, py::array::c_style>>;
template <class T>
using Dense = py::array_t<T, py::array::c_style>;

constexpr int kApiVersion = 6;  // grows with every change of a signature; kernels/native.py knows the one it needs

ValueType value_type(const std::string& name, const py::array& grads) {
  const bool is_float32 = py::isinstance<py::array_t<float>>(grads);
  const bool is_16_bits = py::isinstance<py::array_t<int16_t>>(grads);
  require(name == "float32" ? is_float32 : is_16_bits, "grads do not hold values of type " + name);
  return dataflex::value_type_named(name);
}

dataflex::Adam make_adam(const std::string& variant, const std::array<float, 7>& constants, const Moments& exp_avg,
                         const Moments& exp_avg_sq, int64_t count) {
  const AdamVariant parsed = dataflex::adam_variant_named(variant);
  if (parsed == AdamVariant::kNone) return {parsed, nullptr, nullptr, 0, 0, 0, 0, 0, 0, 0};
  for (const Moments* moment : {&exp_avg, &exp_avg_sq}) {
    require(moment->has_value() && (*moment)->ndim() == 1 && (*moment)->shape(0) == count,
            "moments must have one value a column of grads");
  }
  const auto& c = constants;
  return {parsed, exp_avg->data(), exp_avg_sq->data(), c[0], c[1], c[2], c[3], c[4], c[5], c[6]};
}

// The block of gradients that every kernel reads. The arrays must outlive it.
Gradients make_block(const py::array& grads, const std::string& type, int64_t offset, const std::string& variant,
                     const std::array<float, 7>& constants, const Moments& exp_avg, const Moments& exp_avg_sq) {
  const ValueType parsed = value_type(type, grads);
  require(grads.ndim() == 2, "grads must have two dimensions");
  const int64_t rows = grads.shape(0), count = grads.shape(1);
  require(grads.size() == 0 || count == 1 || grads.strides(1) == grads.itemsize(), "a row of grads must be contiguous");
  require(grads.strides(0) % grads.itemsize() == 0, "grads are not aligned");
  require(offset >= 0 && offset <= INT64_MAX / 2 - count, "offset is out of range");
  return {grads.data(),
          parsed,
          rows,
          grads.strides(0) / grads.itemsize(),
          count,
          offset,
          make_adam(variant, constants, exp_avg, exp_avg_sq, count)};
}

void check_rows(const py::array& column, int64_t rows) {
  require(column.ndim() == 1 && column.shape(0) == rows, "per-row arrays and grads differ in rows");
}

int32_t check_sums(const py::array& sums, int64_t rows) {
  require(sums.ndim() == 2 && sums.shape(0) == rows, "totals and grads differ in rows");
  require(sums.shape(1) >= 1 && sums.shape(1) <= INT32_MAX, "dim is out of range");
  return static_cast<int32_t>(sums.shape(1));
}

Totals make_totals(int64_t rows, const Dense<int32_t>& exponents, Dense<int64_t>& sums, Dense<uint8_t>& not_finite,
                   Dense<int64_t>& saturated) {
  check_rows(exponents, rows);
  check_rows(not_finite, rows);
  check_rows(saturated, rows);
  for (int64_t row = 0; row < rows; ++row) {
    require(exponents.data()[row] >= -126 && exponents.data()[row] <= 127, "exponents must be in [-126, 127]");
  }
  return {sums.mutable_data(), not_finite.mutable_data(), saturated.mutable_data()};
}

void sjlt_accumulate(const py::array& grads, const std::string& type, int64_t offset, const std::string& variant,
                     const std::array<float, 7>& constants, const Moments& exp_avg, const Moments& exp_avg_sq,
                     const Dense<int32_t>& exponents, uint64_t seed, int32_t sparsity, Dense<int64_t>& sums,
                     Dense<uint8_t>& not_finite, Dense<int64_t>& saturated, int threads) {
  const Gradients block = make_block(grads, type, offset, variant, constants, exp_avg, exp_avg_sq);
  const int32_t dim = check_sums(sums, block.rows);
  require(sparsity >= 1 && dim % (dataflex::kLanes * int64_t{sparsity}) == 0,
          "dim must be a multiple of 16 * sparsity");
  const Totals totals = make_totals(block.rows, exponents, sums, not_finite, saturated);
  const dataflex::SjltJob job{block, exponents.data(), seed, dim, sparsity, threads};
  const py::gil_scoped_release unlocked;
  dataflex::sjlt_accumulate(job, totals);
}

void rademacher_accumulate(const py::array& grads, const std::string& type, int64_t offset, const std::string& variant,
                           const std::array<float, 7>& constants, const Moments& exp_avg, const Moments& exp_avg_sq,
                           const Dense<int32_t>& exponents, uint64_t seed, Dense<int64_t>& sums,
                           Dense<uint8_t>& not_finite, Dense<int64_t>& saturated, int threads) {
  const Gradients block = make_block(grads, type, offset, variant, constants, exp_avg, exp_avg_sq);
  const int32_t dim = check_sums(sums, block.rows);
  const Totals totals = make_totals(block.rows, exponents, sums, not_finite, saturated);
  const dataflex::RademacherJob job{block, exponents.data(), seed, dim, threads};
  const py::gil_scoped_release unlocked;
  dataflex::rademacher_accumulate(job, totals);
}

void gaussian_accumulate(const py::array& grads, const std::string& type, int64_t offset, const std::string& variant,
                         const std::array<float, 7>& constants, const Moments& exp_avg, const Moments& exp_avg_sq,
                         uint64_t seed, Dense<double>& sums, Dense<uint8_t>& not_finite, int threads) {
  const Gradients block = make_block(grads, type, offset, variant, constants, exp_avg, exp_avg_sq);
  const int32_t dim = check_sums(sums, block.rows);
  check_rows(not_finite, block.rows);
  const dataflex::GaussianTotals totals{sums.mutable_data(), not_finite.mutable_data()};
  const dataflex::GaussianJob job{block, seed, dim, threads};
  const py::gil_scoped_release unlocked;
  dataflex::gaussian_accumulate(job, totals);
}

void dots_accumulate(const py::array& grads, const std::string& type, int64_t offset, const std::string& variant,
                     const std::array<float, 7>& constants, const Moments& exp_avg, const Moments& exp_avg_sq,
                     const py::array_t<float>& directions, Dense<double>& sums, Dense<uint8_t>& not_finite,
                     int threads) {
  const Gradients block = make_block(grads, type, offset, variant, constants, exp_avg, exp_avg_sq);
  require(directions.ndim() == 2 && directions.shape(1) == block.count, "directions and grads differ in columns");
  const int64_t number = directions.shape(0), item = directions.itemsize();
  require(directions.size() == 0 || block.count == 1 || directions.strides(1) == item,
          "a direction must be contiguous");
  require(directions.strides(0) % item == 0, "directions are not aligned");
  require(check_sums(sums, block.rows) == number + 1, "sums must have a column a direction and one more");
  check_rows(not_finite, block.rows);
  const dataflex::DotsTotals totals{sums.mutable_data(), not_finite.mutable_data()};
  const dataflex::DotsJob job{block, directions.data(), directions.strides(0) / item, static_cast<int32_t>(number),
                              threads};
  const py::gil_scoped_release unlocked;
  dataflex::dots_accumulate(job, totals);
}

double adam_pass(const py::array& grads, const std::string& type, int64_t offset, const std::string& variant,
                 const std::array<float, 7>& constants, const Moments& exp_avg, const Moments& exp_avg_sq,
                 int threads) {
  const Gradients block = make_block(grads, type, offset, variant, constants, exp_avg, exp_avg_sq);
  const py::gil_scoped_release unlocked;
  return dataflex::adam_pass(block, threads);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native kernels of dataflex. Private: use dataflex.projection.projector.";
  module.attr("API_VERSION") = kApiVersion;
  module.def("philox4x32", [](std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    dataflex::Words<1> words{{{counter[0]}, {counter[1]}, {counter[2]}, {counter[3]}}};
    dataflex::philox4x32(words, key[0], key[1]);
    return std::array<uint32_t, 4>{words.at[0][0], words.at[1][0], words.at[2][0], words.at[3][0]};
  });
  module.def("isa", [] { return dataflex::isa_name(dataflex::current_isa()); });
  module.def("sjlt_accumulate", &sjlt_accumulate, py::arg("grads").noconvert(), py::arg("type"), py::arg("offset"),
             py::arg("variant"), py::arg("constants"), py::arg("exp_avg").noconvert(),
             py::arg("exp_avg_sq").noconvert(), py::arg("exponents").noconvert(), py::arg("seed"), py::arg("sparsity"),
             py::arg("sums").noconvert(), py::arg("not_finite").noconvert(), py::arg("saturated").noconvert(),
             py::arg("threads"));
  module.def("rademacher_accumulate", &rademacher_accumulate, py::arg("grads").noconvert(), py::arg("type"),
             py::arg("offset"), py::arg("variant"), py::arg("constants"), py::arg("exp_avg").noconvert(),
             py::arg("exp_avg_sq").noconvert(), py::arg("exponents").noconvert(), py::arg("seed"),
             py::arg("sums").noconvert(), py::arg("not_finite").noconvert(), py::arg("saturated").noconvert(),
             py::arg("threads"));
  module.def("gaussian_accumulate", &gaussian_accumulate, py::arg("grads").noconvert(), py::arg("type"),
             py::arg("offset"), py::arg("variant"), py::arg("constants"), py::arg("exp_avg").noconvert(),
             py::arg("exp_avg_sq").noconvert(), py::arg("seed"), py::arg("sums").noconvert(),
             py::arg("not_finite").noconvert(), py::arg("threads"));
  module.def("dots_accumulate", &dots_accumulate, py::arg("grads").noconvert(), py::arg("type"), py::arg("offset"),
             py::arg("variant"), py::arg("constants"), py::arg("exp_avg").noconvert(),
             py::arg("exp_avg_sq").noconvert(), py::arg("directions").noconvert(), py::arg("sums").noconvert(),
             py::arg("not_finite").noconvert(), py::arg("threads"));
  module.def("adam_pass", &adam_pass, "Reads and normalises a block and returns the sum: a floor for benchmarks.",
             py::arg("grads").noconvert(), py::arg("type"), py::arg("offset"), py::arg("variant"), py::arg("constants"),
             py::arg("exp_avg").noconvert(), py::arg("exp_avg_sq").noconvert(), py::arg("threads"));
  dataflex::cuda::bind(module);
}
