// MIND-SSC on GPUs: the kernels of the descriptor and of the loss of two images' descriptors. The formulas stand in
// usreg_kernels/ops/mind_ssc/reference.py.
//
// A volume is taken in slabs of planes, so that no channel is kept for more than a slab (mind.cu):
//
// 1. mind_sum_z sums the squared differences of all pairs along z, straight from the image.
// 2. The filter of gaussian_smooth.cuh averages along y.
// 3. MindDistances sums along x, which gives the distances D. Kernels go on from there: to the mean of V (a turn
// through
//    all slabs that comes first, as V is limited by it), the descriptor, the loss, and the slopes of either by each
//    distance.
// 4. For a gradient, the adjoint filters average the slopes along x and y. mind_pull sums them along z, and multiplies
//    them by the differences: what each voxel pulls at its neighbours. mind_gather adds up the pulls at each voxel.
//
// Nothing is ever subtracted from a sum, and each voxel's sums have one order: the same input gives the same bits.
//
// The maps of a slab are (volumes, planes, H, K, W) with K pairs, so that blocks of the filter along y take the rows of
// all maps. An image of two axes is a volume of one row per plane: its y is z here.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"
#include "cuda/support/reduction.cuh"

namespace usreg {
namespace cuda {

constexpr int kMindThreads = 128;
constexpr int kMindAverageThreads = 256;

template <int kDims>
constexpr int kMindPairs = 2 * kDims * (kDims - 1);

// Planes of a few volumes that follow on each other.
struct MindPlanes {
  int64_t volume, volumes;  // the first one, and how many
  int begin, end;
  __host__ __device__ int size() const { return end - begin; }
};

// Where kernels are, and what the windows are.
struct MindVolumes {
  int depth, height, width;
  int radius, dilation;

  __host__ __device__ int64_t plane() const { return static_cast<int64_t>(height) * width; }
  __host__ __device__ int64_t voxels() const { return depth * plane(); }
  // Blocks of one volume's planes.
  __host__ __device__ unsigned pieces(const MindPlanes& planes) const {
    return static_cast<unsigned>(ceil_div<int64_t>(planes.size() * plane(), kMindThreads));
  }
};

// A thread's voxel.
struct MindVoxel {
  __device__ MindVoxel(const MindVolumes& volumes, const MindPlanes& planes) {
    const unsigned pieces = volumes.pieces(planes);
    const unsigned index = (blockIdx.x % pieces) * kMindThreads + threadIdx.x;
    component = blockIdx.x / pieces;
    exists = index < static_cast<uint64_t>(planes.size() * volumes.plane());
    const auto width = static_cast<unsigned>(volumes.width), height = static_cast<unsigned>(volumes.height);
    const unsigned row = index / width;
    x = static_cast<int>(index % width);
    y = static_cast<int>(row % height);
    z = planes.begin + static_cast<int>(row / height);
    volume = planes.volume + component;
  }

  // In a tensor of whole volumes, or of `channels` whole channels each.
  __device__ int64_t in_volume(const MindVolumes& volumes, int64_t channels = 1, int64_t channel = 0) const {
    return ((volume * channels + channel) * volumes.depth + z) * volumes.plane() +
           static_cast<int64_t>(y) * volumes.width + x;
  }

  // In the first of `count` maps of planes that hold the voxel's; the next map lies volumes.width on.
  __device__ int64_t in_maps(const MindVolumes& volumes, const MindPlanes& planes, int count, int plane) const {
    const int64_t slice = static_cast<int64_t>(component) * planes.size() + (plane - planes.begin);
    return (slice * volumes.height + y) * count * volumes.width + x;
  }

  unsigned component;  // which of the planes' volumes
  bool exists;
  int64_t volume;
  int z, y, x;
};

__device__ inline int mind_clamped(int place, int size) { return place < 0 ? 0 : place < size ? place : size - 1; }

__device__ inline float mind_exp(float value) { return expf(value); }
__device__ inline double mind_exp(double value) { return exp(value); }

// The differences of a voxel's neighbours in a plane of its volume, by pair.
template <int kDims, class T>
__device__ void mind_differences(const MindVolumes& volumes, const T* image, int z, int y, int x,
                                 Real<T> (&differences)[kMindPairs<kDims>]) {
  const int width = volumes.width, reach = volumes.dilation;
  const int64_t plane = volumes.plane(), row = static_cast<int64_t>(y) * width;
  const T* const here = image + z * plane + row;
  Real<T> neighbours[2 * kDims];
  neighbours[0] = read(image + mind_clamped(z - reach, volumes.depth) * plane + row + x);
  neighbours[1] = read(image + mind_clamped(z + reach, volumes.depth) * plane + row + x);
  if constexpr (kDims == 3) {
    const T* const column = image + z * plane + x;
    neighbours[2] = read(column + static_cast<int64_t>(mind_clamped(y - reach, volumes.height)) * width);
    neighbours[3] = read(column + static_cast<int64_t>(mind_clamped(y + reach, volumes.height)) * width);
  }
  neighbours[2 * kDims - 2] = read(here + mind_clamped(x - reach, width));
  neighbours[2 * kDims - 1] = read(here + mind_clamped(x + reach, width));
  int k = 0;
#pragma unroll
  for (int first = 0; first + 1 < kDims; ++first) {
#pragma unroll
    for (int second = first + 1; second < kDims; ++second) {
#pragma unroll
      for (int sides = 0; sides < 4; ++sides) {
        differences[k++] = neighbours[2 * first + sides / 2] - neighbours[2 * second + sides % 2];
      }
    }
  }
}

// Writes the sums along z of the squared differences.
template <int kDims, class T>
__global__ void __launch_bounds__(kMindThreads)
    mind_sum_z(const MindVolumes volumes, const MindPlanes planes, const T* image, Real<T>* sums) {
  constexpr int kPairs = kMindPairs<kDims>;
  const MindVoxel voxel(volumes, planes);
  if (!voxel.exists) return;
  const T* const start = image + voxel.volume * volumes.voxels();
  Real<T> totals[kPairs] = {};
#pragma unroll 1
  for (int step = -volumes.radius; step <= volumes.radius; ++step) {
    Real<T> differences[kPairs];
    mind_differences<kDims>(volumes, start, mind_clamped(voxel.z + step, volumes.depth), voxel.y, voxel.x, differences);
#pragma unroll
    for (int k = 0; k < kPairs; ++k) totals[k] += differences[k] * differences[k];
  }
  Real<T>* const target = sums + voxel.in_maps(volumes, planes, kPairs, voxel.z);
#pragma unroll
  for (int k = 0; k < kPairs; ++k) target[static_cast<int64_t>(k) * volumes.width] = totals[k];
}

// The distances of a voxel, as far above the lowest as they are; what the descriptor is made of.
template <int kPairs, class R>
struct MindDistances {
  // sums: along z, and means along y. scale: what makes a mean of the sums along z and x.
  __device__ MindDistances(const MindVolumes& volumes, const MindPlanes& planes, const MindVoxel& voxel, const R* sums,
                           R scale) {
    const R* const row = sums + voxel.in_maps(volumes, planes, kPairs, voxel.z) - voxel.x;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) excess[k] = 0;
#pragma unroll 1
    for (int step = -volumes.radius; step <= volumes.radius; ++step) {
      const R* const here = row + mind_clamped(voxel.x + step, volumes.width);
#pragma unroll
      for (int k = 0; k < kPairs; ++k) excess[k] += __ldg(here + static_cast<int64_t>(k) * volumes.width);
    }
    R least = excess[0];
#pragma unroll
    for (int k = 1; k < kPairs; ++k) {
      const bool is_lower = excess[k] < least;
      lowest = is_lower ? k : lowest;
      least = is_lower ? excess[k] : least;
    }
    variance = 0;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      excess[k] = (excess[k] - least) * scale;
      variance += excess[k];
    }
    variance /= kPairs;
  }

  // Limits V, with the mean over the image. The limits' factors are those of reference.py.
  __device__ void limit(R mean) {
    const R lower = static_cast<R>(1e-3) * mean, upper = static_cast<R>(1e3) * mean;
    is_free = variance >= lower && variance <= upper;
    const R limited = (is_free ? variance : variance < lower ? lower : upper) + R(0) * mean;
    inverse = R(1) / (limited == 0 ? R(1) : limited);
  }

  __device__ R value(int k) const { return mind_exp(-excess[k] * inverse); }

  // Writes the slopes of a result by the distances; towards: its slopes by the descriptor times that, over V.
  __device__ void write_slopes(const R (&towards)[kPairs], R* target, int64_t stride) const {
    R by_variance = 0;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) by_variance += towards[k] * excess[k];
    by_variance = is_free ? by_variance * inverse / kPairs : R(0);
    R total = 0;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) total += by_variance - towards[k];
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      target[k * stride] = by_variance - towards[k] - (k == lowest ? total : R(0));
    }
  }

  R excess[kPairs];
  R variance;
  R inverse = 0;  // of V
  bool is_free = false;
  int lowest = 0;  // the first of several
};

// Writes the sum of V over a block's voxels; `stride` partial sums lie between those of two volumes.
template <int kDims, class R>
__global__ void __launch_bounds__(kMindThreads)
    mind_add_variances(const MindVolumes volumes, const MindPlanes planes, const R* sums, R scale, int64_t stride,
                       R* partials) {
  const MindVoxel voxel(volumes, planes);
  R variance = 0;
  if (voxel.exists) {
    variance = MindDistances<kMindPairs<kDims>, R>(volumes, planes, voxel, sums, scale).variance;
  }
  variance = block_sum(variance);
  if (threadIdx.x == 0) partials[voxel.component * stride + blockIdx.x % volumes.pieces(planes)] = variance;
}

// Writes the mean of V of each volume, a block each, from its partial sums.
template <class R>
__global__ void __launch_bounds__(kMindAverageThreads)
    mind_average(const R* partials, int64_t count, double voxels, R* means) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += kMindAverageThreads) {
    total += static_cast<double>(partials[blockIdx.x * count + i]);
  }
  total = block_sum(total);
  if (threadIdx.x == 0) means[blockIdx.x] = static_cast<R>(total / voxels);
}

template <int kDims, class R>
__global__ void __launch_bounds__(kMindThreads)
    mind_write_descriptor(const MindVolumes volumes, const MindPlanes planes, const R* sums, R scale, const R* means,
                          R* descriptor) {
  constexpr int kPairs = kMindPairs<kDims>;
  const MindVoxel voxel(volumes, planes);
  if (!voxel.exists) return;
  MindDistances<kPairs, R> distances(volumes, planes, voxel, sums, scale);
  distances.limit(means[voxel.volume]);
  R* const target = descriptor + voxel.in_volume(volumes, kPairs);
#pragma unroll
  for (int k = 0; k < kPairs; ++k) target[k * volumes.voxels()] = distances.value(k);
}

// Writes the slopes by the distances, from those by the descriptor.
template <int kDims, class R>
__global__ void __launch_bounds__(kMindThreads)
    mind_write_slopes(const MindVolumes volumes, const MindPlanes planes, const R* sums, R scale, const R* means,
                      const R* grad, R* slopes) {
  constexpr int kPairs = kMindPairs<kDims>;
  const MindVoxel voxel(volumes, planes);
  if (!voxel.exists) return;
  MindDistances<kPairs, R> distances(volumes, planes, voxel, sums, scale);
  distances.limit(means[voxel.volume]);
  const R* const incoming = grad + voxel.in_volume(volumes, kPairs);
  R towards[kPairs];
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
    towards[k] = __ldg(incoming + k * volumes.voxels()) * distances.value(k) * distances.inverse;
  }
  distances.write_slopes(towards, slopes + voxel.in_maps(volumes, planes, kPairs, voxel.z), volumes.width);
}

// What mind_compare reads and writes. The first index is that of pred, the second that of target.
template <class R>
struct MindComparison {
  const R* sums[2];
  const R* means[2];
  const R* mask;  // null for 1
  int64_t channels_per_mask;
  const R* grad_map;  // the incoming gradient of each voxel's loss; null for 1
  R* loss_map;        // null to add up
  R* partials;        // a sum per block; null where only slopes are wanted
  R* weights;         // of the mask
  R* slopes[2];       // null where they are not needed
};

// The loss of voxels in planes from begin to end; the slopes of all.
template <int kDims, bool kHasSlopes, class R>
__global__ void __launch_bounds__(kMindThreads)
    mind_compare(const MindVolumes volumes, const MindPlanes planes, int begin, int end, R scale,
                 const __grid_constant__ MindComparison<R> call) {
  constexpr int kPairs = kMindPairs<kDims>;
  const MindVoxel voxel(volumes, planes);
  R loss = 0, own_weight = 0;
  if (voxel.exists) {
    MindDistances<kPairs, R> pred(volumes, planes, voxel, call.sums[0], scale);
    MindDistances<kPairs, R> target(volumes, planes, voxel, call.sums[1], scale);
    pred.limit(call.means[0][voxel.volume]);
    target.limit(call.means[1][voxel.volume]);
    const int64_t at = voxel.in_volume(volumes);
    R weight = 1;
    if (call.mask != nullptr) {
      const int64_t others = voxel.volume - voxel.volume / call.channels_per_mask;
      weight = __ldg(call.mask + at - others * volumes.voxels());
    }
    R differences[kPairs];
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      differences[k] = pred.value(k) - target.value(k);
      loss += differences[k] * differences[k];
    }
    const bool is_own = begin <= voxel.z && voxel.z < end;
    loss = is_own ? loss / kPairs * weight : R(0);
    own_weight = is_own ? weight : R(0);
    if (is_own && call.loss_map != nullptr) call.loss_map[at] = loss;
    if constexpr (kHasSlopes) {
      if (call.grad_map != nullptr) weight *= __ldg(call.grad_map + at);
      weight *= R(2) / kPairs;
      const int64_t place = voxel.in_maps(volumes, planes, kPairs, voxel.z);
      const auto write = [&](const MindDistances<kPairs, R>& image, R signed_weight, R* slopes) {
        R towards[kPairs];
#pragma unroll
        for (int k = 0; k < kPairs; ++k) {
          towards[k] = signed_weight * differences[k] * image.value(k) * image.inverse;
        }
        image.write_slopes(towards, slopes + place, volumes.width);
      };
      if (call.slopes[0] != nullptr) write(pred, weight, call.slopes[0]);
      if (call.slopes[1] != nullptr) write(target, -weight, call.slopes[1]);
    }
  }
  if (call.partials == nullptr) return;
  loss = block_sum(loss);
  if (threadIdx.x == 0) call.partials[blockIdx.x] = loss;
  if (call.mask == nullptr) return;
  own_weight = block_sum(own_weight);
  if (threadIdx.x == 0) call.weights[blockIdx.x] = own_weight;
}

// Writes what each voxel pulls at its neighbours, by neighbour. slopes: of slope_planes, averaged along x and y.
// scale: what is left to multiply: the 2 of a square, over the planes of a window.
template <int kDims, class T>
__global__ void __launch_bounds__(kMindThreads)
    mind_pull(const MindVolumes volumes, const MindPlanes planes, const MindPlanes slope_planes, const T* image,
              const Real<T>* slopes, Real<T> scale, Real<T>* pulls) {
  using R = Real<T>;
  constexpr int kPairs = kMindPairs<kDims>;
  const MindVoxel voxel(volumes, planes);
  if (!voxel.exists) return;
  const int last = volumes.depth - 1, radius = volumes.radius;
  R totals[kPairs] = {};
  const int first_plane = voxel.z < radius ? 0 : voxel.z - radius;
  const int last_plane = last - voxel.z < radius ? last : voxel.z + radius;
#pragma unroll 1
  for (int plane = first_plane; plane <= last_plane; ++plane) {
    // A voxel at an end is also what the windows see beyond it.
    int count = 1;
    if (voxel.z == 0) count += radius - plane;
    if (voxel.z == last) count += radius - (last - plane);
    const R* const here = slopes + voxel.in_maps(volumes, slope_planes, kPairs, plane);
#pragma unroll
    for (int k = 0; k < kPairs; ++k) totals[k] += count * __ldg(here + static_cast<int64_t>(k) * volumes.width);
  }
  R differences[kPairs];
  mind_differences<kDims>(volumes, image + voxel.volume * volumes.voxels(), voxel.z, voxel.y, voxel.x, differences);
  R shares[2 * kDims] = {};
  int k = 0;
#pragma unroll
  for (int first = 0; first + 1 < kDims; ++first) {
#pragma unroll
    for (int second = first + 1; second < kDims; ++second) {
#pragma unroll
      for (int sides = 0; sides < 4; ++sides) {
        const R pulled = totals[k] * differences[k];
        shares[2 * first + sides / 2] += pulled;
        shares[2 * second + sides % 2] -= pulled;
        ++k;
      }
    }
  }
  R* const target = pulls + voxel.in_maps(volumes, planes, 2 * kDims, voxel.z);
#pragma unroll
  for (int i = 0; i < 2 * kDims; ++i) target[static_cast<int64_t>(i) * volumes.width] = shares[i] * scale;
}

// The pulls at a voxel of those whose neighbour along an axis it is; at an end, of all that see it beyond.
// before, after: the voxel's own places in the maps of pulls at neighbours before and after.
template <class R>
__device__ R mind_pulled_along(const R* before, const R* after, int64_t stride, int place, int size, int dilation) {
  R total = 0;
  if (place + dilation < size) total += __ldg(before + dilation * stride);
  if (place >= dilation) total += __ldg(after - dilation * stride);
  if (place == 0) {
#pragma unroll 1
    for (int i = dilation - 1; i >= 0; --i) {
      if (i < size) total += __ldg(before + i * stride);
    }
  }
  if (place == size - 1) {
#pragma unroll 1
    for (int i = dilation - 1; i >= 0; --i) {
      if (i <= place) total += __ldg(after - i * stride);
    }
  }
  return total;
}

// Writes the gradient, from the pulls of the voxels around.
template <int kDims, class R, class Out>
__global__ void __launch_bounds__(kMindThreads)
    mind_gather(const MindVolumes volumes, const MindPlanes planes, const MindPlanes pull_planes, const R* pulls,
                Out* gradient) {
  const MindVoxel voxel(volumes, planes);
  if (!voxel.exists) return;
  const int width = volumes.width;
  const R* const here = pulls + voxel.in_maps(volumes, pull_planes, 2 * kDims, voxel.z);
  const auto pulled = [&](int axis, int64_t stride, int place, int size) {
    const R* const before = here + static_cast<int64_t>(2 * axis) * width;
    return mind_pulled_along(before, before + width, stride, place, size, volumes.dilation);
  };
  const int64_t row = static_cast<int64_t>(2 * kDims) * width;
  R total = pulled(0, row * volumes.height, voxel.z, volumes.depth);
  if constexpr (kDims == 3) total += pulled(1, row, voxel.y, volumes.height);
  total += pulled(kDims - 1, 1, voxel.x, width);
  gradient[voxel.in_volume(volumes)] = narrow<Out>(total);
}

}  // namespace cuda
}  // namespace usreg
