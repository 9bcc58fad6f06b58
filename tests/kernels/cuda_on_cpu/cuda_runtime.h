// Stands for CUDA's own header where the tests compile the GPU kernels with the host's compiler: as much of CUDA as
// they use, and no more. Threads are fibers (fibers.h), and blocks run one after another.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned size) : x(size) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

struct alignas(8) float2 {
  float x, y;
};

template <class T>
T __ldg(const T* source) {
  return *source;
}

// ---- within a block ------------------------------------------------------------------------------------------------

inline void __syncthreads() { cuda_on_cpu::wait_for_block(); }

template <class T>
T cuda_on_cpu_shuffle(cuda_on_cpu::Shuffle kind, unsigned mask, T value, int argument, int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles take 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_on_cpu::shuffle(kind, mask, bits, argument, width);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return cuda_on_cpu_shuffle(cuda_on_cpu::Shuffle::kIndex, mask, value, lane, width);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return cuda_on_cpu_shuffle(cuda_on_cpu::Shuffle::kUp, mask, value, static_cast<int>(delta), width);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return cuda_on_cpu_shuffle(cuda_on_cpu::Shuffle::kDown, mask, value, static_cast<int>(delta), width);
}

// Threads run one at a time, so that these need do nothing special.
template <class T, class Update>
T cuda_on_cpu_update(T* target, const Update& update) {
  const T before = *target;
  *target = update(before);
  return before;
}

inline unsigned long long atomicAdd(unsigned long long* target, unsigned long long value) {
  return cuda_on_cpu_update(target, [=](auto before) { return before + value; });
}

inline unsigned atomicAdd(unsigned* target, unsigned value) {
  return cuda_on_cpu_update(target, [=](auto before) { return before + value; });
}

inline unsigned long long atomicMax(unsigned long long* target, unsigned long long value) {
  return cuda_on_cpu_update(target, [=](auto before) { return before > value ? before : value; });
}

inline unsigned long long atomicOr(unsigned long long* target, unsigned long long value) {
  return cuda_on_cpu_update(target, [=](auto before) { return before | value; });
}

// ---- launches ------------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return error == cudaErrorMemoryAllocation ? "out of memory" : "invalid configuration argument";
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const unsigned threads = config->blockDim.x, blocks = config->gridDim.x;
  if (threads == 0 || threads > 1024 || blocks == 0) return cudaErrorInvalidConfiguration;
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx = {block, 0, 0};
    cuda_on_cpu::run_block(static_cast<int>(threads), config->dynamicSmemBytes, [&] { kernel(arguments...); });
  }
  return cudaSuccess;
}

// ---- memory and devices --------------------------------------------------------------------------------------------

template <class T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  *memory = static_cast<T*>(std::malloc(bytes));
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };

inline cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  std::memcpy(target, source, bytes);
  return cudaSuccess;
}

// How many multiprocessors the pretended GPU has: tests set it, since grids depend on it.
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = cuda_on_cpu::multiprocessors();
  return cudaSuccess;
}
