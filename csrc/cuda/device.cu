#include <string>

#include "launch.h"

namespace dataflex::cuda {

int multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "count the multiprocessors");
  return count;
}

std::string device_problem(int device) {
  int devices = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (device < 0 || device >= devices) return "there is no CUDA device " + std::to_string(device);
  error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (major >= 8) return "";
  return "compute capability " + std::to_string(major) + "." + std::to_string(minor) + ", expected 8.0 or newer";
}

}  // namespace dataflex::cuda
