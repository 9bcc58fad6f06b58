// Local normalised cross-correlation on GPUs for every window, and for float64: sums along x, then y, then z, each by
// adding up the window again, through arrays in memory. Nothing is ever subtracted.
//
// Window sums of the images are float64, whatever their type. Volumes are taken in parts, so that these arrays stay
// small.
#pragma once

#include "cuda/lncc/plan.cuh"
#include "cuda/support/reduction.cuh"

namespace usreg {
namespace cuda {

constexpr int kSeparableThreads = 256;

// Voxels of a part, about.
#ifndef USREG_SEPARABLE_VOXELS
#define USREG_SEPARABLE_VOXELS (1 << 21)
#endif

// Some planes of some volumes, and the planes around them that their windows reach.
struct SeparablePart {
  int64_t first_volume, volumes;
  int begin, end;       // planes
  int first, last;      // planes whose sums along x and y are needed
  int64_t first_block;  // of the whole call's

  __host__ __device__ int64_t voxels(const LnccShape& shape) const { return volumes * (end - begin) * shape.plane(); }
  // Elements of one array of sums.
  __host__ __device__ int64_t sums(const LnccShape& shape) const { return volumes * (last - first) * shape.plane(); }
};

// The window's weights in the device's memory.
struct SeparableWindow {
  const double *z, *y, *x;
  int halo_z, halo_y, halo_x;
};

constexpr int kWeightsPerLaunch = 256;

template <int kCount>
struct WeightPiece {
  double weights[kCount];
};

// Copies weights from a launch's arguments: unlike a copy from the host's memory, a captured graph can repeat it.
template <int kCount>
__global__ void store_weights(const WeightPiece<kCount> piece, int count, double* target) {
  if (static_cast<int>(threadIdx.x) < count) target[threadIdx.x] = piece.weights[threadIdx.x];
}

// The place of this thread's element in an array of sums or in a part: volume, plane, row, column.
struct SeparablePlace {
  int64_t index;
  int64_t volume;  // of the part
  int plane;       // of the part, from its first on
  int y, x;

  __device__ SeparablePlace(const LnccShape& shape, int planes) {
    index = static_cast<int64_t>(blockIdx.x) * kSeparableThreads + threadIdx.x;
    int64_t rest = index / shape.width;
    x = static_cast<int>(index % shape.width);
    y = static_cast<int>(rest % shape.height);
    rest /= shape.height;
    plane = static_cast<int>(rest % planes);
    volume = rest / planes;
  }
};

// Calls function(offset, weight) for the part of a window that lies within an axis.
template <class R, class Function>
__device__ void for_each_weight(const double* weights, int halo, int position, int size, const Function& function) {
  const int first = position > halo ? -halo : -position;
  const int last = size - 1 - position < halo ? size - 1 - position : halo;
  for (int offset = first; offset <= last; ++offset) function(offset, static_cast<R>(weights[offset + halo]));
}

// sums: (kCorrelationSums, part.sums), window sums along x of p, t, p p, t t and p t.
template <class T>
__global__ void __launch_bounds__(kSeparableThreads)
    sum_products_along_x(LnccShape shape, SeparablePart part, SeparableWindow window, const T* pred, const T* target,
                         double* sums) {
  const int64_t count = part.sums(shape);
  const SeparablePlace place(shape, part.last - part.first);
  if (place.index >= count) return;
  const int64_t plane = (part.first_volume + place.volume) * shape.depth + part.first + place.plane;
  const int64_t voxel = plane * shape.plane() + static_cast<int64_t>(place.y) * shape.width + place.x;
  double sum_p = 0, sum_t = 0, sum_pp = 0, sum_tt = 0, sum_pt = 0;
  for_each_weight<double>(window.x, window.halo_x, place.x, shape.width, [&](int offset, double weight) {
    const double p = widen(pred[voxel + offset]), t = widen(target[voxel + offset]);
    sum_p += weight * p;
    sum_t += weight * t;
    sum_pp += weight * p * p;
    sum_tt += weight * t * t;
    sum_pt += weight * p * t;
  });
  sums[place.index] = sum_p;
  sums[count + place.index] = sum_t;
  sums[2 * count + place.index] = sum_pp;
  sums[3 * count + place.index] = sum_tt;
  sums[4 * count + place.index] = sum_pt;
}

// sums: (map_count, part.sums), window sums along x of the maps. grad_map: null, or factors of the maps.
template <class R>
__global__ void __launch_bounds__(kSeparableThreads)
    sum_maps_along_x(LnccShape shape, SeparablePart part, SeparableWindow window, const R* maps, int map_count,
                     const R* grad_map, R* sums) {
  const int64_t count = part.sums(shape);
  const SeparablePlace place(shape, part.last - part.first);
  if (place.index >= count) return;
  const MapLayout layout(shape);
  const int64_t plane = (part.first_volume + place.volume) * shape.depth + part.first + place.plane;
  const int64_t row = plane * shape.plane() + static_cast<int64_t>(place.y) * shape.width;
  for (int i = 0; i < map_count; ++i) {
    R sum = 0;
    for_each_weight<R>(window.x, window.halo_x, place.x, shape.width, [&](int offset, R weight) {
      const int x = place.x + offset;
      const R value = maps[plane * layout.plane() * map_count + layout.in_plane(place.y, x, map_count) + i * kMapBlock];
      sum += weight * value * (grad_map == nullptr ? R(1) : grad_map[row + x]);
    });
    sums[i * count + place.index] = sum;
  }
}

// sums, result: (arrays, part.sums); result: window sums along y.
template <class R>
__global__ void __launch_bounds__(kSeparableThreads)
    sum_along_y(LnccShape shape, SeparablePart part, SeparableWindow window, int arrays, const R* sums, R* result) {
  const int64_t count = part.sums(shape);
  const SeparablePlace place(shape, part.last - part.first);
  if (place.index >= count) return;
  for (int i = 0; i < arrays; ++i) {
    R sum = 0;
    for_each_weight<R>(window.y, window.halo_y, place.y, shape.height, [&](int offset, R weight) {
      sum += weight * sums[i * count + place.index + static_cast<int64_t>(offset) * shape.width];
    });
    result[i * count + place.index] = sum;
  }
}

// A window sum along z of one array (part.sums) of sums along x and y.
template <class R>
__device__ R sum_along_z(const LnccShape& shape, const SeparablePart& part, const SeparableWindow& window,
                         const SeparablePlace& place, const R* sums) {
  const int z = part.begin + place.plane;
  const int64_t plane = place.volume * (part.last - part.first) + z - part.first;
  const int64_t own = plane * shape.plane() + static_cast<int64_t>(place.y) * shape.width + place.x;
  R sum = 0;
  for_each_weight<R>(window.z, window.halo_z, z, shape.depth,
                     [&](int offset, R weight) { sum += weight * sums[own + offset * shape.plane()]; });
  return sum;
}

// sums: (kCorrelationSums, part.sums), along x and y. map_count: 0, 3 or 5.
template <class R>
__global__ void __launch_bounds__(kSeparableThreads)
    correlate_along_z(LnccShape shape, SeparablePart part, SeparableWindow window,
                      CorrelationConstants<double> constants, const double* sums, int map_count,
                      CorrelationOutputs<R> outputs) {
  const SeparablePlace place(shape, part.end - part.begin);
  double loss = 0, weight = 0;
  if (place.index < part.voxels(shape)) {
    const int64_t count = part.sums(shape), volume = part.first_volume + place.volume;
    const int z = part.begin + place.plane;
    const auto sum = [&](int i) { return sum_along_z(shape, part, window, place, sums + i * count); };
    const WindowSums<double> found = {sum(0), sum(1), sum(2), sum(3), sum(4)};
    CorrelationMaps<double> maps;
    loss = -correlate<true>(found, constants, &maps);
    const int64_t in_plane = static_cast<int64_t>(place.y) * shape.width + place.x;
    if (outputs.mask != nullptr) {
      const int64_t plane = volume / outputs.volumes_per_mask * shape.depth + z;
      weight = outputs.mask[plane * shape.plane() + in_plane];
      loss *= weight;
    }
    const double factor = outputs.mask != nullptr ? weight : 1;
    const int64_t plane = volume * shape.depth + z;
    if (outputs.loss_map != nullptr) outputs.loss_map[plane * shape.plane() + in_plane] = static_cast<R>(loss);
    const MapLayout layout(shape);
    const int64_t first = plane * layout.plane() * map_count + layout.in_plane(place.y, place.x, map_count);
    const double values[] = {maps.by_cross, maps.slope_p, maps.constant_p, maps.slope_t, maps.constant_t};
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      if (i < map_count) outputs.maps[first + i * kMapBlock] = static_cast<R>(values[i] * factor);
    }
  }
  if (outputs.partials == nullptr) return;
  loss = block_sum(loss);
  if (threadIdx.x == 0) outputs.partials[part.first_block + blockIdx.x] = static_cast<R>(loss);
  if (outputs.mask == nullptr) return;
  weight = block_sum(weight);
  if (threadIdx.x == 0) outputs.weights[part.first_block + blockIdx.x] = static_cast<R>(weight);
}

// sums: (map_count, part.sums), along x and y. pred, target: (volumes, depth, height, width); with three maps, pred is
// the image whose maps they are.
template <class T>
__global__ void __launch_bounds__(kSeparableThreads)
    write_gradients_along_z(LnccShape shape, SeparablePart part, SeparableWindow window, const Real<T>* sums,
                            int map_count, const T* pred, const T* target, GradientOutputs<T> outputs) {
  using R = Real<T>;
  const SeparablePlace place(shape, part.end - part.begin);
  if (place.index >= part.voxels(shape)) return;
  const int64_t count = part.sums(shape);
  const int64_t plane = (part.first_volume + place.volume) * shape.depth + part.begin + place.plane;
  const int64_t voxel = plane * shape.plane() + static_cast<int64_t>(place.y) * shape.width + place.x;
  const R p = widen(pred[voxel]), t = widen(target[voxel]), scale = outputs.scale();
  const auto sum = [&](int i) { return sum_along_z(shape, part, window, place, sums + i * count); };
  const R by_cross = sum(0);
  if (outputs.pred_grad != nullptr) {
    outputs.pred_grad[voxel] = narrow<T>(scale * (sum(2) + p * sum(1) + t * by_cross));
  }
  if (outputs.target_grad != nullptr && map_count == 5) {
    outputs.target_grad[voxel] = narrow<T>(scale * (sum(4) + t * sum(3) + p * by_cross));
  }
}

}  // namespace cuda
}  // namespace usreg
