// What reads the image where output voxels look: values, and the gradient to the coordinates, from which those to the
// field and to the affine follow.
#pragma once

#include "cuda/support/reduction.cuh"
#include "cuda/warp/place.cuh"

namespace usreg {
namespace cuda {

constexpr int kWarpTurns = 16;  // voxels that a thread adds up for the gradient to the affine

// Between two values: each of them exactly at its end.
template <class R>
__device__ inline R mix(R low, R high, R fraction) {
  return low - fraction * low + fraction * high;
}

// The value at a place, and its derivative along each axis.
template <class R>
struct Sample {
  R value, along[3];
};

template <int kDims, bool kZeros, class T>
__device__ Sample<Real<T>> sample(const T* channel, const Place<Real<T>>& place) {
  using R = Real<T>;
  constexpr int kRows = kDims > 1 ? 2 : 1, kPlanes = kDims > 2 ? 2 : 1;
  const WarpAxis<R>* const axis = place.axis;
  const T* const first = channel + place.index;
  R values[kPlanes][kRows][2];
#pragma unroll
  for (int i = 0; i < kPlanes; ++i) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        bool exists = true;
        if (kZeros) {
          exists = axis[2].has(k);
          if (kDims > 1) exists = exists && axis[1].has(j);
          if (kDims > 2) exists = exists && axis[0].has(i);
        }
        int64_t offset = k * place.step[2];
        if (kDims > 1) offset += j * place.step[1];
        if (kDims > 2) offset += i * place.step[0];
        values[i][j][k] = exists ? widen(first[offset]) : R(0);
      }
    }
  }
  R on_plane[kPlanes], along_y[kPlanes], along_x[kPlanes];
#pragma unroll
  for (int i = 0; i < kPlanes; ++i) {
    R on_row[kRows], on_row_along_x[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      on_row[j] = mix(values[i][j][0], values[i][j][1], axis[2].fraction);
      on_row_along_x[j] = values[i][j][1] - values[i][j][0];
    }
    if constexpr (kDims > 1) {
      on_plane[i] = mix(on_row[0], on_row[1], axis[1].fraction);
      along_y[i] = on_row[1] - on_row[0];
      along_x[i] = mix(on_row_along_x[0], on_row_along_x[1], axis[1].fraction);
    } else {
      on_plane[i] = on_row[0];
      along_y[i] = 0;
      along_x[i] = on_row_along_x[0];
    }
  }
  if constexpr (kDims > 2) {
    const R z = axis[0].fraction;
    return {mix(on_plane[0], on_plane[1], z),
            {on_plane[1] - on_plane[0], mix(along_y[0], along_y[1], z), mix(along_x[0], along_x[1], z)}};
  } else {
    return {on_plane[0], {R(0), along_y[0], along_x[0]}};
  }
}

// The voxel at the rounded coordinate.
template <int kDims, bool kZeros, class T>
__device__ Real<T> sample_nearest(const T* channel, const Place<Real<T>>& place) {
  bool exists = true;
#pragma unroll
  for (int axis = 3 - kDims; kZeros && axis < 3; ++axis) exists = exists && place.axis[axis].has_lower;
  return exists ? widen(channel[place.index]) : Real<T>(0);
}

// The values, in all channels.
template <int kDims, bool kZeros, class T>
__global__ void __launch_bounds__(kWarpThreads)
    warp_values(const __grid_constant__ WarpProblem<T> problem, Real<T>* output) {
  using R = Real<T>;
  const OutputVoxel<R> voxel(problem, 0);
  if (!voxel.exists) return;
  const Place<R> place = Place<R>::template find<kDims, kZeros>(problem, voxel);
#pragma unroll 1
  for (int64_t channel = 0; channel < problem.channels; ++channel) {
    const int64_t map = voxel.batch * problem.channels + channel;
    const T* const source = problem.image + map * problem.image_voxels;
    R value =
        problem.nearest ? sample_nearest<kDims, kZeros>(source, place) : sample<kDims, kZeros>(source, place).value;
    if (problem.composes) value += widen(problem.field[map * problem.voxels + voxel.index]);
    output[map * problem.voxels + voxel.index] = place.finite ? value : std::numeric_limits<R>::quiet_NaN();
  }
}

// The gradient to an output voxel's coordinates.
template <int kDims, bool kZeros, class T>
__device__ void find_slopes(const WarpProblem<T>& problem, const OutputVoxel<Real<T>>& voxel,
                            const Real<T>* grad_output, Real<T> gradient[kDims]) {
  using R = Real<T>;
  const Place<R> place = Place<R>::template find<kDims, kZeros>(problem, voxel);
  const R* grad = grad_output + voxel.batch * problem.channels * problem.voxels + voxel.index;
  const T* source = problem.image + voxel.batch * problem.channels * problem.image_voxels;
  R total[kDims] = {};
#pragma unroll 1
  for (int64_t channel = 0; channel < problem.channels; ++channel) {
    const Sample<R> found = sample<kDims, kZeros>(source, place);
    const R incoming = grad[channel * problem.voxels];
#pragma unroll
    for (int i = 0; i < kDims; ++i) total[i] += incoming * found.along[i + 3 - kDims];
    source += problem.image_voxels;
  }
#pragma unroll
  for (int i = 0; i < kDims; ++i) {
    const R slope = place.axis[i + 3 - kDims].slope;
    R value = slope != 0 ? total[i] * slope : R(0);
    if (!place.finite) value = std::numeric_limits<R>::quiet_NaN();
    if (problem.composes) value += grad[i * problem.voxels];
    gradient[i] = value;
  }
}

// Blocks per multiprocessor that the registers leave room for. Capability 7.5 never runs more than eight.
template <class R>
constexpr int slopes_blocks(bool sums) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return sizeof(R) == 8 && sums ? 4 : 8;
#else
  return (sizeof(R) == 8 ? 4 : 8) + (sums ? 0 : 4);
#endif
}

// The gradient to the field, if field_grad is not null. With kSums also sums for that to the affine, one per block and
// element: to partials (batch * dims * (dims + 1), stride), of which the slab's begin at an offset; a block then takes
// kWarpTurns voxels per thread.
template <int kDims, bool kZeros, bool kSums, class T>
__global__ void __launch_bounds__(kWarpThreads, slopes_blocks<Real<T>>(kSums))
    warp_slopes(const __grid_constant__ WarpProblem<T> problem, const Real<T>* grad_output, T* field_grad,
                double* partials, int64_t stride, int64_t offset) {
  using R = Real<T>;
  constexpr int kTurns = kSums ? kWarpTurns : 1;
  R sums[kDims][kDims + 1] = {};
#pragma unroll 1
  for (int turn = 0; turn < kTurns; ++turn) {
    const OutputVoxel<R> voxel(problem, turn);
    if (!voxel.exists) break;
    R gradient[kDims];
    find_slopes<kDims, kZeros>(problem, voxel, grad_output, gradient);
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      if (field_grad != nullptr) {
        field_grad[(voxel.batch * kDims + i) * problem.voxels + voxel.index] = narrow<T>(gradient[i]);
      }
      if constexpr (kSums) {
#pragma unroll
        for (int j = 0; j < kDims; ++j) sums[i][j] += gradient[i] * voxel.place[j + 3 - kDims];
        sums[i][kDims] += gradient[i];
      }
    }
  }
  if constexpr (kSums) {
    const uint32_t batch = problem.pieces.quotient(blockIdx.x);
    const uint32_t piece = blockIdx.x - batch * problem.pieces.value;
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
#pragma unroll
      for (int j = 0; j <= kDims; ++j) {
        const double total = block_sum(static_cast<double>(sums[i][j]));
        const int64_t row = (static_cast<int64_t>(batch) * kDims + i) * (kDims + 1) + j;
        if (threadIdx.x == 0) partials[row * stride + offset + piece] = total;
      }
    }
  }
}

}  // namespace cuda
}  // namespace usreg
