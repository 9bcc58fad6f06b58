// Gaussian smoothing on GPUs, a pass over the image per axis.
//
// The axes before the last one are filtered across rows: a thread computes the results of a few rows in succession. It
// keeps as many values as results, and takes in one more row per weight. Along the last axis a thread computes one
// voxel, whose neighbours come from the first-level cache.
//
// The adjoint is the same filter with other borders. For zeros, nothing changes. For a reflection, what lies at the two
// ends of an axis counts double, and results there half. For a repeated edge, the filter sees zeros outside, and both
// ends get in addition what would have come from outside.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"

namespace usreg {
namespace cuda {

constexpr int kMostRadius = 63;
constexpr int kRowThreads = 128;
constexpr int kRowsAtOnce = 8;
constexpr int kColumnThreads = 256;

enum class Outside { kBorder, kZeros, kReflection };

// A filter along the middle axis of (outer, size, width). R computes.
template <class R>
struct SmoothingAxis {
  int64_t outer, size, width;
  int radius;
  Outside outside;
  bool adjoint;
  R weights[kMostRadius + 1];  // at distances 0, 1, ...
  R tails[kMostRadius + 1];    // the sum of those beyond

  __host__ __device__ int64_t voxels() const { return outer * size * width; }
  __host__ __device__ bool repeats_edge() const { return outside == Outside::kBorder && !adjoint; }
  // Whether what lies at the ends has factors, or gets an addition.
  __host__ __device__ bool weighs_ends() const { return outside == Outside::kReflection && adjoint && size > 1; }
  __host__ __device__ bool adds_at_ends() const { return outside == Outside::kBorder && adjoint; }

  __device__ bool is_end(int64_t j) const { return j == 0 || j == size - 1; }

  // The element that a place repeats; -1 where there are zeros.
  __device__ int64_t source(int64_t place) const {
    const int64_t last = size - 1;
    if (place >= 0 && place <= last) return place;
    if (repeats_edge()) return place < 0 ? 0 : last;
    if (outside != Outside::kReflection) return -1;
    if (last == 0) return 0;
    int64_t distance = place < 0 ? -place : place;
    if (distance > 2 * last) distance %= 2 * last;
    return distance <= last ? distance : 2 * last - distance;
  }
};

// What lies at a place along an axis of elements that are `stride` apart, and how it counts.
template <class R, class In>
__device__ R value_at(const SmoothingAxis<R>& axis, const In* line, int64_t stride, int64_t place) {
  const int64_t source = axis.source(place);
  if (source < 0) return 0;
  const R value = widen(line[source * stride]);
  return axis.weighs_ends() && axis.is_end(source) ? 2 * value : value;
}

// What an end of an axis gets from outside: `step` leads inwards.
template <class R, class In>
__device__ R addition_at_end(const SmoothingAxis<R>& axis, const In* end, int64_t step) {
  R sum = 0;
#pragma unroll 1
  for (int64_t i = 0; i <= axis.radius && i < axis.size; ++i) sum += axis.tails[i] * widen(end[i * step]);
  return sum;
}

template <class R, class In, class Out>
__global__ void __launch_bounds__(kRowThreads) filter_rows(const SmoothingAxis<R> axis, const In* source, Out* target) {
  const auto pieces = static_cast<unsigned>(ceil_div<int64_t>(axis.width, kRowThreads));
  const auto spans = static_cast<unsigned>(ceil_div<int64_t>(axis.size, kRowsAtOnce));
  const int64_t column = static_cast<int64_t>(blockIdx.x % pieces) * kRowThreads + threadIdx.x;
  if (column >= axis.width) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x / pieces % spans) * kRowsAtOnce;
  const int64_t start = (blockIdx.x / pieces / spans) * axis.size * axis.width + column;
  const In* const line = source + start;

  R values[kRowsAtOnce], totals[kRowsAtOnce];
  // read(row): the value of a row of the axis, from `first - radius` on.
  const auto sum = [&](const auto& read) {
    const int64_t begin = first - axis.radius;
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      totals[i] = 0;
      values[i] = i == 0 ? R(0) : read(begin + i - 1);
    }
#pragma unroll 1
    for (int k = 0; k <= 2 * axis.radius; ++k) {
      const R weight = axis.weights[k < axis.radius ? axis.radius - k : k - axis.radius];
#pragma unroll
      for (int i = 0; i + 1 < kRowsAtOnce; ++i) values[i] = values[i + 1];
      values[kRowsAtOnce - 1] = read(begin + k + kRowsAtOnce - 1);
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) totals[i] += weight * values[i];
    }
  };
  if (first > axis.radius && first + kRowsAtOnce + axis.radius < axis.size) {
    sum([&](int64_t row) { return static_cast<R>(widen(line[row * axis.width])); });
  } else {
    sum([&](int64_t row) { return value_at(axis, line, axis.width, row); });
  }
  const int64_t last = axis.size - 1;
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) {
    const int64_t row = first + i;
    if (row > last) return;
    if (axis.adds_at_ends()) {
      if (row == 0) totals[i] += addition_at_end(axis, line, axis.width);
      if (row == last) totals[i] += addition_at_end(axis, line + last * axis.width, -axis.width);
    }
    if (axis.weighs_ends() && axis.is_end(row)) totals[i] /= 2;
    target[start + row * axis.width] = narrow<Out>(totals[i]);
  }
}

// Along an axis whose elements follow on each other: axis.width is 1.
template <class R, class In, class Out>
__global__ void __launch_bounds__(kColumnThreads)
    filter_columns(const SmoothingAxis<R> axis, const In* source, Out* target) {
  const int64_t voxel = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (voxel >= axis.voxels()) return;
  const auto size = static_cast<unsigned>(axis.size);
  const bool is_short = axis.size < int64_t{1} << 23;  // then 32 bits do, whose division is quicker
  const int64_t j = is_short ? (blockIdx.x % size * kColumnThreads + threadIdx.x) % size : voxel % axis.size;
  const In* const line = source + voxel - j;
  const int64_t last = axis.size - 1;
  R total = 0;
  if (j >= axis.radius + 1 && j < last - axis.radius) {
    const In* const here = source + voxel;
    total = axis.weights[0] * widen(here[0]);
#pragma unroll 4
    for (int k = 1; k <= axis.radius; ++k) total += axis.weights[k] * (widen(here[-k]) + widen(here[k]));
  } else {
#pragma unroll 1
    for (int k = -axis.radius; k <= axis.radius; ++k) {
      total += axis.weights[k < 0 ? -k : k] * value_at(axis, line, 1, j + k);
    }
    if (axis.adds_at_ends()) {
      if (j == 0) total += addition_at_end(axis, line, 1);
      if (j == last) total += addition_at_end(axis, line + last, -1);
    }
    if (axis.weighs_ends() && axis.is_end(j)) total /= 2;
  }
  target[voxel] = narrow<Out>(total);
}

// source, target: (outer, size, width), with at least one voxel.
template <class R, class In, class Out>
void launch_filter(Launches& launches, const SmoothingAxis<R>& axis, const In* source, Out* target) {
  if (axis.width == 1) {
    launches.run(filter_columns<R, In, Out>, ceil_div<int64_t>(axis.voxels(), kColumnThreads), kColumnThreads, 0, axis,
                 source, target);
    return;
  }
  const int64_t pieces = ceil_div<int64_t>(axis.width, kRowThreads);
  launches.run(filter_rows<R, In, Out>, axis.outer * ceil_div<int64_t>(axis.size, kRowsAtOnce) * pieces, kRowThreads, 0,
               axis, source, target);
}

}  // namespace cuda
}  // namespace usreg
