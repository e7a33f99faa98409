// An extension without CUDA.
#include <string>

#include "bindings.h"

namespace dataflex::cuda {

void bind(pybind11::module_& module) {
  module.attr("cuda_built") = false;
  module.def(
      "cuda_problem", [](int) { return std::string("dataflex-sdk was built without CUDA"); }, pybind11::arg("device"));
}

}  // namespace dataflex::cuda
