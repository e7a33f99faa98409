// The CUDA kernels as Python functions. Python knows the tensors and has checked device, dtype, shape and contiguity
// (python/dataflex/projection/kernels/cuda.py); addresses and sizes arrive as integers.
#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <string>

#include "kernels.h"
#include "names.h"

namespace py = pybind11;

namespace dataflex::cuda {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Gradients make_block(uintptr_t values, const std::string& type, int64_t rows, int64_t row_stride, int64_t count,
                     int64_t offset, const std::string& variant, const std::array<float, 7>& constants,
                     uintptr_t exp_avg, uintptr_t exp_avg_sq) {
  const AdamVariant parsed = adam_variant_named(variant);
  require(rows >= 0 && count >= 0 && row_stride >= 0, "sizes of grads are out of range");
  require(offset >= 0 && offset <= INT64_MAX / 2 - count, "offset is out of range");
  require(parsed == AdamVariant::kNone || count == 0 || (exp_avg != 0 && exp_avg_sq != 0), "moments are missing");
  const auto& c = constants;
  return {at<const void>(values),
          value_type_named(type),
          rows,
          row_stride,
          count,
          offset,
          {parsed, at<const float>(exp_avg), at<const float>(exp_avg_sq), c[0], c[1], c[2], c[3], c[4], c[5], c[6]}};
}

Totals make_totals(uintptr_t sums, uintptr_t not_finite, uintptr_t saturated) {
  return {at<int64_t>(sums), at<uint8_t>(not_finite), at<int64_t>(saturated)};
}

void sjlt(const Gradients& block, uintptr_t exponents, uint64_t seed, int32_t dim, int32_t sparsity, uintptr_t sums,
          uintptr_t not_finite, uintptr_t saturated, int device, uintptr_t stream) {
  require(sparsity >= 1 && dim >= 1 && dim % (kLanes * int64_t{sparsity}) == 0,
          "dim must be a multiple of 16 * sparsity");
  const py::gil_scoped_release unlocked;
  sjlt_accumulate({block, at<const int32_t>(exponents), seed, dim, sparsity, 0},
                  make_totals(sums, not_finite, saturated), {device, at<void>(stream)});
}

void rademacher(const Gradients& block, uintptr_t exponents, uint64_t seed, int32_t dim, uintptr_t sums,
                uintptr_t not_finite, uintptr_t saturated, uintptr_t workspace, int device, uintptr_t stream) {
  require(dim >= 1, "dim is out of range");
  const py::gil_scoped_release unlocked;
  rademacher_accumulate({block, at<const int32_t>(exponents), seed, dim, 0}, make_totals(sums, not_finite, saturated),
                        at<void>(workspace), {device, at<void>(stream)});
}

void gaussian(const Gradients& block, uint64_t seed, int32_t dim, uintptr_t sums, uintptr_t not_finite,
              uintptr_t workspace, int device, uintptr_t stream) {
  require(dim >= 1, "dim is out of range");
  const py::gil_scoped_release unlocked;
  gaussian_accumulate({block, seed, dim, 0}, {at<double>(sums), at<uint8_t>(not_finite)}, at<void>(workspace),
                      {device, at<void>(stream)});
}

void dots(const Gradients& block, uintptr_t directions, int64_t direction_stride, int32_t dim, uintptr_t sums,
          uintptr_t not_finite, uintptr_t workspace, int device, uintptr_t stream) {
  require(dim >= 1, "dim is out of range");
  require(direction_stride >= 0, "sizes of directions are out of range");
  const py::gil_scoped_release unlocked;
  dots_accumulate({block, at<const float>(directions), direction_stride, dim - 1, 0},
                  {at<double>(sums), at<uint8_t>(not_finite)}, at<void>(workspace), {device, at<void>(stream)});
}

int64_t workspace_bytes(const std::string& kind, const Gradients& block, int32_t dim) {
  if (kind == "rademacher") return rademacher_workspace_bytes(block);
  if (kind == "dots") return dots_workspace_bytes(block, dim - 1);
  return kind == "gaussian" ? gaussian_workspace_bytes(block, dim) : 0;
}

}  // namespace

void bind(py::module_& module) {
  module.attr("cuda_built") = true;
  module.def("cuda_problem", &device_problem, py::arg("device"));
  py::class_<Gradients>(module, "CudaBlock")
      .def(py::init(&make_block), py::arg("values"), py::arg("type"), py::arg("rows"), py::arg("row_stride"),
           py::arg("count"), py::arg("offset"), py::arg("variant"), py::arg("constants"), py::arg("exp_avg"),
           py::arg("exp_avg_sq"));
  module.def("cuda_workspace_bytes", &workspace_bytes, py::arg("kind"), py::arg("block"), py::arg("dim"));
  module.def("cuda_sjlt_accumulate", &sjlt, py::arg("block"), py::arg("exponents"), py::arg("seed"), py::arg("dim"),
             py::arg("sparsity"), py::arg("sums"), py::arg("not_finite"), py::arg("saturated"), py::arg("device"),
             py::arg("stream"));
  module.def("cuda_rademacher_accumulate", &rademacher, py::arg("block"), py::arg("exponents"), py::arg("seed"),
             py::arg("dim"), py::arg("sums"), py::arg("not_finite"), py::arg("saturated"), py::arg("workspace"),
             py::arg("device"), py::arg("stream"));
  module.def("cuda_gaussian_accumulate", &gaussian, py::arg("block"), py::arg("seed"), py::arg("dim"), py::arg("sums"),
             py::arg("not_finite"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
  module.def("cuda_dots_accumulate", &dots, py::arg("block"), py::arg("directions"), py::arg("direction_stride"),
             py::arg("dim"), py::arg("sums"), py::arg("not_finite"), py::arg("workspace"), py::arg("device"),
             py::arg("stream"));
}

}  // namespace dataflex::cuda
