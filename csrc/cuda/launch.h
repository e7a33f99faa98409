// Host side of a kernel launch: errors as exceptions, the device of the tensors, slices of a job.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "gradients.h"
#include "kernels.h"
#include "plan.h"

namespace dataflex::cuda {

inline void check(cudaError_t error, const char* action) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA could not ") + action + ": " + cudaGetErrorString(error));
}

// Makes a device the current one while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "find the current device");
    if (before_ != device) check(cudaSetDevice(device), "change the current device");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

constexpr int64_t kSharedWithoutAsking = 48 << 10;  // a kernel that needs more has to say so

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t shared_bytes, const Queue& queue,
            const Arguments&... arguments) {
  if (blocks > INT32_MAX) throw std::runtime_error("CUDA could not launch a kernel: too many rows or outputs");
  if (shared_bytes > kSharedWithoutAsking) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "reserve shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launch a kernel");
}

// Rows row .. row + rows and columns column .. column + count of a block.
inline Gradients slice(Gradients block, int64_t row, int64_t rows, int64_t column, int64_t count) {
  const int64_t value_bytes = block.type == ValueType::kFloat32 ? 4 : 2;
  block.values = static_cast<const char*>(block.values) + (row * block.row_stride + column) * value_bytes;
  block.rows = rows;
  block.count = count;
  block.offset += column;
  if (block.adam.variant != AdamVariant::kNone) {
    block.adam.exp_avg += column;
    block.adam.exp_avg_sq += column;
  }
  return block;
}

}  // namespace dataflex::cuda
