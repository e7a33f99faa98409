#pragma once

#include <pybind11/pybind11.h>

namespace dataflex::cuda {

// Adds the CUDA kernels to the extension, or what says that they were not built (bindings_absent.cpp).
void bind(pybind11::module_& module);

}  // namespace dataflex::cuda
