// Where output voxels look: the coordinates, brought into the image by the padding mode, and the voxels around them.
//
// A thread takes one output voxel; those of a warp of threads follow on each other in memory, so that each load of the
// voxels around touches few cache lines.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"

namespace usreg {
namespace cuda {

constexpr int kWarpThreads = 128;  // output voxels of a block

// Divides numbers below 2^31 by one that launches share, by a multiplication.
struct Divisor {
  uint32_t value, factor, shift;

  static Divisor of(uint32_t value) {
    uint32_t shift = 0;
    while (shift < 31 && (uint32_t{1} << shift) < value) ++shift;
    const uint64_t excess = ((uint64_t{1} << shift) - value) << 32;
    return {value, static_cast<uint32_t>(excess / value + 1), shift};
  }
  __device__ uint32_t quotient(uint32_t number) const {
    return (static_cast<uint32_t>((static_cast<uint64_t>(number) * factor) >> 32) + number) >> shift;
  }
};

#ifndef USREG_WARP_SLAB
#define USREG_WARP_SLAB (1 << 30)
#endif
constexpr int64_t kWarpSlab = USREG_WARP_SLAB;  // output voxels of a launch, per image, unless a single row has more
constexpr int64_t kMostAlongAxis = int64_t{1} << 30;

// A warp of `batch` images, or a slab of whole rows of its output. Sizes are those of the axes z, y, x; where there are
// fewer, the first ones are 1.
template <class T>
struct WarpProblem {
  using R = Real<T>;
  const T* image;   // (batch, channels, image)
  const T* field;   // (batch, dims, output), or null
  const R* affine;  // (batch, dims, dims + 1), or null
  int64_t batch, channels, image_voxels, voxels;
  int size[3];
  int64_t output_size[3];
  R inverse_period[3];  // of reflection, along each axis
  bool nearest, reflects, composes;

  // The slab: its first voxel, the row of which is (first_z, first_y), and how many there are.
  int64_t first;
  int first_z, first_y;
  uint32_t count;
  int turns;              // output voxels of a thread
  Divisor pieces;         // blocks per image
  Divisor width, height;  // of the output

  int64_t blocks() const { return batch * pieces.value; }
};

// An output voxel.
template <class R>
struct OutputVoxel {
  int64_t batch, index;
  bool exists;
  R place[3];

  // The voxel of this thread in a turn; all threads of a block have one batch.
  template <class T>
  __device__ OutputVoxel(const WarpProblem<T>& problem, int turn) {
    const uint32_t image = problem.pieces.quotient(blockIdx.x);
    const uint32_t piece = blockIdx.x - image * problem.pieces.value;
    const uint32_t local = (piece * problem.turns + turn) * kWarpThreads + threadIdx.x;
    batch = image;
    index = problem.first + local;
    exists = local < problem.count;
    const uint32_t row = problem.width.quotient(local), from_first_plane = row + problem.first_y;
    const uint32_t plane = problem.height.quotient(from_first_plane);
    place[0] = static_cast<R>(problem.first_z + static_cast<int>(plane));
    place[1] = static_cast<R>(static_cast<int>(from_first_plane - plane * problem.height.value));
    place[2] = static_cast<R>(static_cast<int>(local - row * problem.width.value));
  }
};

// A coordinate along an axis of the image.
template <class R>
struct WarpAxis {
  int lower;                  // the voxel at or below
  R fraction;                 // how far above it; 0 for nearest, where lower is the rounded coordinate
  R slope;                    // derivative of fraction: 1, -1, or 0 where the padding stops the coordinate
  bool has_lower, has_upper;  // whether it lies in the image, and whether the voxel above does

  __device__ R share(int upper) const { return upper ? fraction : 1 - fraction; }
  __device__ bool has(int upper) const { return upper ? has_upper : has_lower; }
};

template <class R>
__device__ inline bool is_finite(R value) {
  return (value < 0 ? -value : value) <= std::numeric_limits<R>::max();
}

template <bool kZeros, class R>
__device__ WarpAxis<R> locate_on_axis(R coordinate, int size, R inverse_period, bool nearest, bool reflects) {
  const R low = kZeros ? R(-1) : R(0), high = static_cast<R>(kZeros ? size : size - 1);
  WarpAxis<R> found;
  found.slope = 1;
  if (!kZeros && reflects) {
    const R period = size > 1 ? 2 * high : R(1);
    found.slope = coordinate < 0 ? R(-1) : R(1);
    coordinate *= found.slope;
    coordinate -= floor(coordinate * inverse_period) * period;  // clamped later, if this is a turn off at its end
    if (coordinate > high) {
      found.slope = -found.slope;
      coordinate = period - coordinate;
    }
  }
  const bool moves = (kZeros ? coordinate >= low : coordinate > low) && coordinate < high;
  if (!moves) found.slope = 0;
  coordinate = coordinate > low ? coordinate : low;  // of NaN, too
  coordinate = coordinate < high ? coordinate : high;
  if (nearest) {
    found.lower = static_cast<int>(rint(coordinate));  // halves to even
    found.fraction = 0;
  } else {
    found.lower = static_cast<int>(floor(coordinate));
    if (!kZeros && found.lower > size - 2) found.lower = size > 1 ? size - 2 : 0;  // the voxel above is there
    found.fraction = coordinate - static_cast<R>(found.lower);
  }
  found.has_lower = !kZeros || (found.lower >= 0 && found.lower < size);
  found.has_upper = !kZeros || (found.lower >= -1 && found.lower < size - 1);
  return found;
}

// Where an output voxel looks.
template <class R>
struct Place {
  WarpAxis<R> axis[3];
  bool finite;
  int64_t index;    // of the voxel at or below, in a channel of the image
  int64_t step[3];  // to the next voxel; 0 along an axis of one voxel, unless what lies outside is hidden

  template <int kDims, bool kZeros, class T>
  static __device__ Place find(const WarpProblem<T>& problem, const OutputVoxel<R>& voxel) {
    Place place;
    place.finite = true;
    place.index = 0;
    const int64_t strides[3] = {static_cast<int64_t>(problem.size[1]) * problem.size[2], problem.size[2], 1};
#pragma unroll
    for (int axis = 3 - kDims; axis < 3; ++axis) {
      const int number = axis - 3 + kDims;
      R coordinate = voxel.place[axis];
      if (problem.affine != nullptr) {
        const R* const line = problem.affine + (voxel.batch * kDims + number) * (kDims + 1);
        coordinate = line[kDims];
#pragma unroll
        for (int other = 0; other < kDims; ++other) coordinate += line[other] * voxel.place[other + 3 - kDims];
      }
      if (problem.field != nullptr && voxel.exists) {
        coordinate += widen(problem.field[(voxel.batch * kDims + number) * problem.voxels + voxel.index]);
      }
      place.finite = place.finite && is_finite(coordinate);
      place.axis[axis] = locate_on_axis<kZeros>(coordinate, problem.size[axis], problem.inverse_period[axis],
                                                problem.nearest, problem.reflects);
      place.index += place.axis[axis].lower * strides[axis];
      place.step[axis] = kZeros || problem.size[axis] > 1 ? strides[axis] : 0;
    }
    return place;
  }
};

}  // namespace cuda
}  // namespace usreg
