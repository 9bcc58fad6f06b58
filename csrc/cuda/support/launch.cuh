// How kernels are launched. Grids are one-dimensional, since other axes end at 65,535 blocks, and a batch may not.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace usreg {
namespace cuda {

constexpr int kWarp = 32;

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// The first error of a few launches that follow on each other; nothing is launched after one.
class Launches {
 public:
  explicit Launches(cudaStream_t stream) : stream_(stream) {}

  // shared_bytes: of block_memory, per block.
  template <class... Parameters, class... Arguments>
  void run(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, Arguments... arguments) {
    if (error_ != cudaSuccess) return;
    if (blocks > INT32_MAX) {
      error_ = cudaErrorInvalidConfiguration;
      return;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    error_ = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }

  cudaError_t error() const { return error_; }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace cuda
}  // namespace usreg
