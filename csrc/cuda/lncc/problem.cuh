// Local normalised cross-correlation on GPUs: what the two ways to compute it share. march.cuh is the fast one;
// separable.cuh takes every window and float64.
//
// Forward makes three maps of derivatives where one gradient will be asked for, five for both, and none otherwise;
// backward sums them over windows. Maps stay in the type of arithmetic, because a cancellation between them would not
// survive rounding them apart.
#pragma once

#include "cuda/support/elements.cuh"
#include "cuda/support/launch.cuh"

#define USREG_ISA cuda
#define USREG_INLINE __host__ __device__ inline
#include "common/correlation.inc"
#undef USREG_INLINE
#undef USREG_ISA

namespace usreg {
namespace cuda {

constexpr int kMapBlock = 32;  // columns

// Volumes of independent windows; fewer spatial axes have the last ones.
struct LnccShape {
  int64_t volumes;
  int depth, height, width;

  __host__ __device__ int64_t plane() const { return static_cast<int64_t>(height) * width; }
  __host__ __device__ int64_t voxels() const { return volumes * depth * plane(); }
};

// Maps are (volumes, depth, blocks of columns, height, maps, kMapBlock): rows and maps lie at distances that the
// compiler knows.
struct MapLayout {
  int depth, height, blocks;

  __host__ __device__ explicit MapLayout(const LnccShape& shape)
      : depth(shape.depth), height(shape.height), blocks(ceil_div(shape.width, kMapBlock)) {}

  // The elements of one plane with one map.
  __host__ __device__ int64_t plane() const { return static_cast<int64_t>(blocks) * height * kMapBlock; }

  // The first map's place of a voxel within its plane.
  __device__ int64_t in_plane(int y, int x, int maps) const {
    return (static_cast<int64_t>(x / kMapBlock) * height + y) * (maps * kMapBlock) + x % kMapBlock;
  }
};

constexpr int kPaddingThreads = 256;

// Zeroes the columns of maps beyond the width, which nothing reads: what forward saves is then the same for the same
// input.
template <class R>
__global__ void __launch_bounds__(kPaddingThreads) clear_map_padding(LnccShape shape, int map_count, R* maps) {
  const MapLayout layout(shape);
  const int first = shape.width % kMapBlock, padding = kMapBlock - first;
  int64_t index = static_cast<int64_t>(blockIdx.x) * kPaddingThreads + threadIdx.x;
  const int column = first + static_cast<int>(index % padding);
  index /= padding;
  const int64_t rows = static_cast<int64_t>(layout.height) * map_count, row = index % rows, plane = index / rows;
  if (plane >= shape.volumes * shape.depth) return;
  const int64_t last_block = static_cast<int64_t>(layout.blocks - 1) * layout.height * kMapBlock * map_count;
  maps[plane * layout.plane() * map_count + last_block + row * kMapBlock + column] = 0;
}

template <class R>
void launch_clear_map_padding(Launches& launches, const LnccShape& shape, int map_count, R* maps) {
  if (map_count == 0 || shape.width % kMapBlock == 0) return;
  const int64_t count = shape.volumes * shape.depth * shape.height * map_count * (kMapBlock - shape.width % kMapBlock);
  launches.run(clear_map_padding<R>, ceil_div<int64_t>(count, kPaddingThreads), kPaddingThreads, 0, shape, map_count,
               maps);
}

// A null pointer stays null.
template <class T>
__device__ T* offset(T* pointer, int64_t elements) {
  return pointer == nullptr ? nullptr : pointer + elements;
}

// What forward makes of the images. R is Real<T>.
template <class R>
struct CorrelationOutputs {
  const R* mask;  // null, or weights (volumes / volumes_per_mask, depth, height, width)
  int volumes_per_mask;
  R* loss_map;  // null, or (volumes, depth, height, width)
  R* maps;      // null, or by MapLayout
  R* partials;  // null, or sums of the negated ncc, one per block
  R* weights;   // null, or sums of the mask, one per block
};

// What backward makes of the maps.
template <class T>
struct GradientOutputs {
  using R = Real<T>;
  const R* grad;          // the incoming gradient, a scalar
  const double* divisor;  // of the mean
  double volume;          // of the window; the maps are less by this factor
  T* pred_grad;           // (volumes, depth, height, width); with three maps, that of the image whose maps they are
  T* target_grad;         // null, or the same for the target

  // What every gradient is multiplied by; the loss is the negated correlation.
  __device__ R scale() const {
    return static_cast<R>(grad == nullptr ? -volume : -volume * static_cast<double>(*grad) / *divisor);
  }
};

}  // namespace cuda
}  // namespace usreg
