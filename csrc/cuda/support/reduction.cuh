// Sums over all voxels in two stages: one partial sum per block, and one block that adds these up in a fixed order. No
// atomics, so the same input gives the same bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/support/launch.cuh"

namespace usreg {
namespace cuda {

extern __shared__ __align__(16) unsigned char block_memory[];  // of a launch's shared_bytes

constexpr int kFinishThreads = 512;

// Bytes of block_memory that block_sum and block_max take.
template <class A>
constexpr size_t block_sum_bytes(int threads) {
  return sizeof(A) * (threads / kWarp);
}

// Joins the values of a block of whole warps, at most 32 of them; valid in its first thread. All threads must call it.
// join(a, b): of any order. empty: joins with a value to that value.
template <class A, class Join>
__device__ A block_join(A value, A empty, const Join& join) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  A* const joined = reinterpret_cast<A*>(block_memory);
  const int warps = static_cast<int>(blockDim.x) / kWarp, lane = threadIdx.x % kWarp;
  for (int step = kWarp / 2; step > 0; step /= 2) value = join(value, __shfl_down_sync(kAll, value, step));
  __syncthreads();  // an earlier one may still be read
  if (lane == 0) joined[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x >= kWarp) return value;
  value = lane < warps ? joined[lane] : empty;
  for (int step = kWarp / 2; step > 0; step /= 2) value = join(value, __shfl_down_sync(kAll, value, step));
  return value;
}

template <class A>
__device__ A block_sum(A value) {
  return block_join(value, A(0), [](A a, A b) { return a + b; });
}

// Of unsigned integers.
template <class A>
__device__ A block_max(A value) {
  return block_join(value, A(0), [](A a, A b) { return a > b ? a : b; });
}

// loss = sign * sum(partials) / divisor, in float64. divisor: divide_by or, with weights, their sum; weights that sum
// to 0 count as 1, since the weighted sum is 0 then. partials, weights: (count), weights may be null.
//
// One block is enough: nvcc unrolls its loop 16 times, so that it waits for memory once per 8,192 partial sums. Each of
// them is what a block has summed, e.g. over thousands of voxels of a field.
template <class A>
__global__ void __launch_bounds__(kFinishThreads) finish(const A* partials, const A* weights, int64_t count,
                                                         double sign, double divide_by, A* loss, double* divisor) {
  double total = 0, weight = 0;
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) {
    total += static_cast<double>(partials[i]);
    if (weights != nullptr) weight += static_cast<double>(weights[i]);
  }
  total = block_sum(total);
  if (weights != nullptr) weight = block_sum(weight);
  if (threadIdx.x != 0) return;
  double by = divide_by;
  if (weights != nullptr) by = weight == 0 ? 1 : weight;
  if (divisor != nullptr) *divisor = by;
  *loss = static_cast<A>(sign * total / by);
}

template <class A>
void launch_finish(Launches& launches, const A* partials, const A* weights, int64_t count, double sign,
                   double divide_by, A* loss, double* divisor) {
  launches.run(finish<A>, 1, kFinishThreads, block_sum_bytes<double>(kFinishThreads), partials, weights, count, sign,
               divide_by, loss, divisor);
}

// The sum of a row of partials (rows, count) per block, in one order.
template <class A>
__global__ void __launch_bounds__(kFinishThreads) add_up_rows(const double* partials, int64_t count, A* sums) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) total += partials[blockIdx.x * count + i];
  total = block_sum(total);
  if (threadIdx.x == 0) sums[blockIdx.x] = static_cast<A>(total);
}

}  // namespace cuda
}  // namespace usreg
