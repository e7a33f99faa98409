# The CUDA kernels: target dataflex_cuda, or none. DATAFLEX_CUDA is 0 (never), 1 (an error where they cannot be built)
# or auto (where a fitting nvcc is found); DATAFLEX_CUDA_BUILT is what became of it.
set(DATAFLEX_CUDA "auto" CACHE STRING "0, 1 or auto")
set(DATAFLEX_CUDA_BUILT OFF)
set(cuda_problem "")

if(NOT DATAFLEX_CUDA STREQUAL "0")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_problem "no nvcc that works was found; put it on PATH or name it in CUDACXX")
  else()
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE cuda_codes ERROR_QUIET)
    foreach(code sm_80 sm_90)
      if(NOT cuda_codes MATCHES "${code}[^0-9]")
        set(cuda_problem "${CMAKE_CUDA_COMPILER} knows no ${code}; CUDA 11.8 or newer is needed")
      endif()
    endforeach()
  endif()
  if(cuda_problem STREQUAL "")
    set(DATAFLEX_CUDA_BUILT ON)
  elseif(DATAFLEX_CUDA STREQUAL "1")
    message(FATAL_ERROR "DATAFLEX_CUDA=1, but ${cuda_problem}")
  else()
    message(STATUS "CUDA kernels are not built: ${cuda_problem}")
  endif()
endif()

if(DATAFLEX_CUDA_BUILT)
  # Machine code for these, and PTX that the driver of a newer device compiles at first use.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  add_library(dataflex_cuda STATIC csrc/cuda/device.cu csrc/cuda/sjlt.cu csrc/cuda/rademacher.cu csrc/cuda/gaussian.cu
    csrc/cuda/dots.cu csrc/cuda/plan.cpp)
  # The runtime is linked in: an extension that was built with CUDA loads where no CUDA is installed.
  set_target_properties(dataflex_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
    CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
  target_include_directories(dataflex_cuda PUBLIC csrc)
  # One rounding an operation, as csrc/gradients.h demands. Division, square root and denormals are IEEE by default.
  target_compile_options(dataflex_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>)
endif()
