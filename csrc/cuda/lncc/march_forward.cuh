// The forward march of local normalised cross-correlation: the loss, and the maps of derivatives.
#pragma once

#include "cuda/lncc/march.cuh"
#include "cuda/support/reduction.cuh"

namespace usreg {
namespace cuda {

template <class T>
struct MarchForwardArguments {
  MarchGrid grid;
  MarchWeights weights;
  CorrelationConstants<float> constants;
  const T* pred;    // (volumes, depth, height, pitch)
  const T* target;  // the same
  CorrelationOutputs<float> outputs;
};

// kPlain: there is no mask, and the loss is no map.
template <int kHalo, bool kBox, int kMaps, bool kPlain, class T>
struct ForwardMarch {
  const MarchForwardArguments<T>& arguments;
  const MarchPlace<kHalo>& place;
  const T* pred;  // of this thread, in the plane that is next
  const T* target;
  int64_t image_plane;
  bool in_row;
  bool has_second;
  const float* mask;  // of this thread, in the volume's first plane
  float* loss_map;
  float* maps;
  int64_t map_plane;
  float total[kColumns] = {}, total_weight[kColumns] = {};

  __device__ __forceinline__ ForwardMarch(const MarchForwardArguments<T>& given, const MarchPlace<kHalo>& at)
      : arguments(given), place(at) {
    const MarchGrid& grid = arguments.grid;
    const LnccShape& shape = grid.shape;
    const MapLayout layout(shape);
    image_plane = static_cast<int64_t>(shape.height) * grid.pitch;
    const int64_t in_image =
        place.plane_index(shape, place.first_plane()) * image_plane + place.y * grid.pitch + place.x;
    pred = arguments.pred + in_image;
    target = arguments.target + in_image;
    in_row = place.x >= 0 && place.x < grid.pitch;
    has_second = place.x + 1 < shape.width;
    const int64_t in_plane = static_cast<int64_t>(place.y) * shape.width + place.x;
    const int64_t volume = shape.depth * shape.plane();
    if (!kPlain) {
      const int64_t mask_volume = place.volume / arguments.outputs.volumes_per_mask;
      mask = offset(arguments.outputs.mask, mask_volume * volume + in_plane);
      loss_map = offset(arguments.outputs.loss_map, place.volume * volume + in_plane);
    }
    map_plane = layout.plane() * kMaps;
    maps = offset(arguments.outputs.maps,
                  place.plane_index(shape, 0) * map_plane + layout.in_plane(place.y, place.x, kMaps));
  }

  __device__ __forceinline__ void read_plane(float (&sums)[kCorrelationSums][kColumns]) {
    const MarchGrid& grid = arguments.grid;
    for_each_row<kHalo, kBox>(place.y, grid.shape.height, arguments.weights, [&](int row, bool exists, float weight) {
      float p[kColumns] = {}, t[kColumns] = {};
      if (exists && in_row) {
        load_pair(pred + row * grid.pitch, p);
        load_pair(target + row * grid.pitch, t);
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float weighted_p = kBox ? p[c] : weight * p[c], weighted_t = kBox ? t[c] : weight * t[c];
        sums[0][c] += weighted_p;
        sums[1][c] += weighted_t;
        sums[2][c] += weighted_p * p[c];
        sums[3][c] += weighted_t * t[c];
        sums[4][c] += weighted_p * t[c];
      }
    });
    pred += image_plane;
    target += image_plane;
  }

  __device__ __forceinline__ void emit(int z, const float (&sums)[kCorrelationSums][kColumns]) {
    float weight[kColumns] = {1, 1}, losses[kColumns];
    const int64_t plane = z * arguments.grid.shape.plane();
    if (!kPlain && arguments.outputs.mask != nullptr && place.owns) {
      weight[0] = mask[plane];
      weight[1] = has_second ? mask[plane + 1] : 0;
      total_weight[0] += weight[0];
      total_weight[1] += weight[1];
    }
    CorrelationMaps<float> found[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const WindowSums<float> window = {sums[0][c], sums[1][c], sums[2][c], sums[3][c], sums[4][c]};
      losses[c] = correlate<kMaps == 5>(window, arguments.constants, &found[c]) * weight[c];
      total[c] -= losses[c];
    }
    if (!place.owns) return;
    if (!kPlain && arguments.outputs.loss_map != nullptr) {
      loss_map[plane] = -losses[0];
      if (has_second) loss_map[plane + 1] = -losses[1];
    }
    if constexpr (kMaps > 0) {
      const float second = has_second ? weight[1] : 0.0f;  // backward reads on into the padding of rows
      float* const target_maps = maps + z * map_plane;
      const auto store = [&](int map, float CorrelationMaps<float>::* value) {
        store_pair(target_maps + map * kMapBlock, {found[0].*value * weight[0], found[1].*value * second});
      };
      store(0, &CorrelationMaps<float>::by_cross);
      store(1, &CorrelationMaps<float>::slope_p);
      store(2, &CorrelationMaps<float>::constant_p);
      if constexpr (kMaps == 5) {
        store(3, &CorrelationMaps<float>::slope_t);
        store(4, &CorrelationMaps<float>::constant_t);
      }
    }
  }

  __device__ __forceinline__ float own_sum(const float (&sums)[kColumns]) const {
    return place.owns ? sums[0] + (has_second ? sums[1] : 0.0f) : 0.0f;
  }
};

template <int kHalo, bool kBox, int kMaps, bool kPlain, class T>
__global__ void __launch_bounds__(kMarchThreads, kMarchBlocks<kHalo, kMaps>)
    lncc_march_forward(const MarchForwardArguments<T> arguments) {
  const MarchPlace<kHalo> place(arguments.grid);
  ForwardMarch<kHalo, kBox, kMaps, kPlain, T> steps(arguments, place);
  march<kHalo, kBox, kCorrelationSums>(arguments.grid, arguments.weights, place, steps);
  if (arguments.outputs.partials == nullptr) return;
  const float sum = block_sum(steps.own_sum(steps.total));
  if (threadIdx.x == 0) arguments.outputs.partials[blockIdx.x] = sum;
  if (kPlain || arguments.outputs.mask == nullptr) return;
  const float weight = block_sum(steps.own_sum(steps.total_weight));
  if (threadIdx.x == 0) arguments.outputs.weights[blockIdx.x] = weight;
}

}  // namespace cuda
}  // namespace usreg
