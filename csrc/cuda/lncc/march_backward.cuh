// The backward march of local normalised cross-correlation: from the maps to the gradients.
#pragma once

#include "cuda/lncc/march.cuh"

namespace usreg {
namespace cuda {

template <class T>
struct MarchBackwardArguments {
  MarchGrid grid;
  MarchWeights weights;
  const float* maps;      // by MapLayout
  const float* grad_map;  // null, or factors of the maps (volumes, depth, height, pitch)
  const T* pred;          // (volumes, depth, height, pitch); with three maps, the image whose maps they are
  const T* target;        // the same
  GradientOutputs<T> outputs;
};

// kPlain: the incoming gradient is a scalar.
template <int kHalo, bool kBox, int kMaps, bool kPlain, class T>
struct BackwardMarch {
  const MarchBackwardArguments<T>& arguments;
  const MarchPlace<kHalo>& place;
  const float* maps;      // of this thread, in the plane that is next
  const float* grad_map;  // the same
  const T* pred;          // of this thread, in the volume's first plane
  const T* target;
  int64_t image_plane, map_plane, gradient_start;
  bool in_row;
  float scale;

  __device__ __forceinline__ BackwardMarch(const MarchBackwardArguments<T>& given, const MarchPlace<kHalo>& at)
      : arguments(given), place(at) {
    const MarchGrid& grid = arguments.grid;
    const LnccShape& shape = grid.shape;
    const MapLayout layout(shape);
    image_plane = static_cast<int64_t>(shape.height) * grid.pitch;
    map_plane = layout.plane() * kMaps;
    in_row = place.x >= 0 && place.x < shape.width;
    const int64_t first = place.plane_index(shape, place.first_plane());
    const int64_t in_image = place.y * grid.pitch + place.x;
    maps = arguments.maps + first * map_plane + (in_row ? layout.in_plane(place.y, place.x, kMaps) : 0);
    if (!kPlain) grad_map = offset(arguments.grad_map, first * image_plane + in_image);
    const int64_t in_volume = place.plane_index(shape, 0) * image_plane + in_image;
    pred = arguments.pred + in_volume;
    target = arguments.target + in_volume;
    gradient_start =
        place.plane_index(shape, 0) * shape.plane() + static_cast<int64_t>(place.y) * shape.width + place.x;
    scale = arguments.outputs.scale();
  }

  __device__ __forceinline__ void read_plane(float (&sums)[kMaps][kColumns]) {
    const MarchGrid& grid = arguments.grid;
    for_each_row<kHalo, kBox>(place.y, grid.shape.height, arguments.weights, [&](int row, bool exists, float weight) {
      float values[kMaps][kColumns] = {}, factors[kColumns] = {weight, weight};
      if (exists && in_row) {
#pragma unroll
        for (int i = 0; i < kMaps; ++i) load_pair(maps + (row * kMaps + i) * kMapBlock, values[i]);
        if (!kPlain && grad_map != nullptr) {
          float incoming[kColumns];
          load_pair(grad_map + row * grid.pitch, incoming);
          for (int c = 0; c < kColumns; ++c) factors[c] *= incoming[c];
        }
      }
#pragma unroll
      for (int i = 0; i < kMaps; ++i) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          sums[i][c] += kBox && kPlain ? values[i][c] : factors[c] * values[i][c];
        }
      }
    });
    maps += map_plane;
    if (!kPlain) grad_map = offset(grad_map, image_plane);
  }

  __device__ __forceinline__ void emit(int z, const float (&sums)[kMaps][kColumns]) {
    if (!place.owns) return;
    float p[kColumns], t[kColumns], gradient[kColumns];
    load_pair(pred + z * image_plane, p);
    load_pair(target + z * image_plane, t);
    if (arguments.outputs.pred_grad != nullptr) {
      for (int c = 0; c < kColumns; ++c) gradient[c] = scale * (sums[2][c] + p[c] * sums[1][c] + t[c] * sums[0][c]);
      store(z, gradient, arguments.outputs.pred_grad);
    }
    if constexpr (kMaps == 5) {
      if (arguments.outputs.target_grad == nullptr) return;
      for (int c = 0; c < kColumns; ++c) gradient[c] = scale * (sums[4][c] + t[c] * sums[3][c] + p[c] * sums[0][c]);
      store(z, gradient, arguments.outputs.target_grad);
    }
  }

  __device__ __forceinline__ void store(int z, const float (&gradient)[kColumns], T* gradients) const {
    const LnccShape& shape = arguments.grid.shape;
    T* const row = gradients + gradient_start + z * shape.plane();
    if (shape.width == arguments.grid.pitch) {
      store_pair(row, gradient);
    } else {
      row[0] = narrow<T>(gradient[0]);
      if (place.x + 1 < shape.width) row[1] = narrow<T>(gradient[1]);
    }
  }
};

template <int kHalo, bool kBox, int kMaps, bool kPlain, class T>
__global__ void __launch_bounds__(kMarchThreads, kMarchBlocks<kHalo, kMaps>)
    lncc_march_backward(const MarchBackwardArguments<T> arguments) {
  const MarchPlace<kHalo> place(arguments.grid);
  BackwardMarch<kHalo, kBox, kMaps, kPlain, T> steps(arguments, place);
  march<kHalo, kBox, kMaps>(arguments.grid, arguments.weights, place, steps);
}

}  // namespace cuda
}  // namespace usreg
